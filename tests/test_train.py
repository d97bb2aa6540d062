"""The train and evaluate stages, over photos that the tests draw."""

import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import train
from catsdogs.errors import UserError
from catsdogs.networks import (
    Head,
    build_network,
    fold_batchnorm,
    load_network,
    save_network,
    set_trainable,
    set_training,
)
from catsdogs.params import read_params

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import REPOSITORY, Project, error_line, kaggle_files
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from weight_files import name_by_hash, save_weights, write_weights


def prepare_small(root: Path) -> Project:
    """A prepared project of 48/24/24 easy photos whose networks learn fully, from random weights."""
    project = Project(root)
    project.photos(kaggle_files(cats=48, dogs=48))
    project.split(train=48, validation=24, test=24)
    project.params["train"] |= {"layers": "all", "epochs": 3, "batch_size": 8}
    project.prepare()
    return project


@pytest.fixture
def small(tmp_path: Path) -> Project:
    return prepare_small(tmp_path / "small")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with resnet18 and mobilenet_v2 trained and evaluated. To be read only."""
    project = prepare_small(tmp_path_factory.mktemp("evaluated"))
    project.params["networks"] = {name: {"weights": "none"} for name in ("resnet18", "mobilenet_v2")}
    project.write_params()
    for script in (("train.py", "resnet18"), ("train.py", "mobilenet_v2"), ("evaluate.py",)):
        result = project.run(*script)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""  # progress bars are for people who watch
    return project


def test_training_writes_the_model_its_curves_and_its_best_epoch(evaluated: Project) -> None:
    curves = pd.read_csv(evaluated.root / "metrics/curves/resnet18.csv")
    assert list(curves) == ["epoch", "lr", "train_loss", "validation_loss", "validation_accuracy"]
    assert list(curves["epoch"]) == [1, 2, 3]
    best = evaluated.read_json("metrics/train_resnet18.json")
    assert best == curves.loc[curves["validation_accuracy"].idxmax()].drop("lr").to_dict()
    assert load_file(evaluated.root / "models/resnet18.safetensors")["fc.0.weight"].shape == (512, 512)


def test_evaluate_scores_the_model_that_was_kept(evaluated: Project) -> None:
    scores = evaluated.read_json("metrics/evaluate.json")
    assert list(scores) == ["resnet18", "mobilenet_v2"]
    for name, values in scores.items():
        assert values["validation_accuracy"] == evaluated.read_json(f"metrics/train_{name}.json")["validation_accuracy"]
    assert scores["resnet18"]["accuracy"] >= 0.9


def test_scores_are_those_of_the_predictions(evaluated: Project) -> None:
    predictions = pd.read_csv(evaluated.root / "metrics/predictions.csv")
    assert list(predictions) == ["split", "photo", "label", "network", "logit_cat", "logit_dog"]
    assert len(predictions) == 2 * (24 + 24)
    in_splits = {
        (r["split"], r["photo"], r["label"]) for r in evaluated.split_table() if r["split"] in ("validation", "test")
    }
    assert set(predictions[["split", "photo", "label"]].itertuples(index=False, name=None)) == in_splits

    for name, values in evaluated.read_json("metrics/evaluate.json").items():
        rows = predictions[(predictions["network"] == name) & (predictions["split"] == "test")]
        says_dog = rows["logit_dog"] > rows["logit_cat"]
        is_dog = rows["label"] == "dog"
        assert values["correct"] == (says_dog == is_dog).sum()
        assert values["total"] == 24
        assert values["accuracy"] == round(values["correct"] / 24, 6)
        assert values["accuracy_low"] < values["accuracy"] <= values["accuracy_high"] <= 1
        right_margin = (rows["logit_dog"] - rows["logit_cat"]).where(is_dog, rows["logit_cat"] - rows["logit_dog"])
        assert values["log_loss"] == pytest.approx(np.log1p(np.exp(-right_margin)).mean(), abs=1e-6)
        assert values["recall"]["dog"] == pytest.approx((says_dog & is_dog).sum() / is_dog.sum(), abs=1e-6)
        says_cat = ~says_dog
        right_cats = (says_cat & ~is_dog).sum()
        assert values["precision"]["cat"] == pytest.approx(right_cats / max(1, says_cat.sum()), abs=1e-6)
        confusion = pd.read_csv(evaluated.root / f"metrics/confusion/{name}.csv")
        assert (confusion["actual"] == confusion["predicted"]).sum() == values["correct"]


def test_training_again_gives_the_same_bytes(small: Project) -> None:
    files = ("models/resnet18.safetensors", "metrics/curves/resnet18.csv", "metrics/train_resnet18.json")

    def trained() -> list[bytes]:
        assert small.run("train.py", "resnet18").returncode == 0
        return [(small.root / file).read_bytes() for file in files]

    small.params["train"] |= {"augment": "crop_and_flip", "epochs": 1}  # dropout, order and augmentation are all drawn
    small.write_params()
    first = trained()
    assert trained() == first
    small.params["train"]["seed"] = 2
    small.write_params()
    assert trained()[0] != first[0]


def test_the_best_epoch_is_kept_as_it_was(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    states, accuracies = [], iter([0.5, 0.9, 0.6])

    def scripted_validation(network: torch.nn.Module, *_: object) -> dict:
        states.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
        return {"validation_loss": 1.0, "validation_accuracy": next(accuracies)}

    monkeypatch.setattr(train, "validate", scripted_validation)
    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(small.root)
    train.main()

    kept = load_file(small.root / "models/resnet18.safetensors")
    assert kept.keys() == states[1].keys()
    assert all(torch.equal(kept[key], states[1][key]) for key in kept)
    assert not torch.equal(kept["conv1.weight"], states[2]["conv1.weight"])
    assert small.read_json("metrics/train_resnet18.json")["epoch"] == 2


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        ("head", r"fc\."),
        ("batchnorm", r"fc\.|.*(bn\d|downsample\.1)\."),
        ("last_half", r"(layer3|layer4|fc)\."),
        ("all", ""),
    ],
)
def test_only_the_layers_named_are_trained(small: Project, layers: str, trained: str) -> None:
    weights = write_weights(small.root, "resnet18")
    small.params["networks"]["resnet18"]["weights"] = weights.name
    small.params["train"] |= {"layers": layers, "epochs": 1}
    small.write_params()
    result = small.run("train.py", "resnet18")
    assert result.returncode == 0, result.stderr

    before = torch.load(weights, weights_only=True)
    after = load_file(small.root / "models/resnet18.safetensors")
    for key in after.keys() & before.keys():
        changed = not torch.equal(before[key], after[key])
        assert changed == bool(re.match(trained, key)), key


def test_the_body_is_trained_at_a_lower_learning_rate_than_the_head(small: Project) -> None:
    weights = write_weights(small.root, "resnet18")
    small.params["networks"]["resnet18"]["weights"] = weights.name
    small.params["train"] |= {"optimizer": "sgd", "momentum": 0, "lr_schedule": "one_cycle", "epochs": 1}
    begun = torch.load(weights, weights_only=True)["conv1.weight"]
    moved, heads = [], []
    for factor in (1.0, 0.01):
        small.params["train"]["body_lr_factor"] = factor
        small.write_params()
        assert small.run("train.py", "resnet18").returncode == 0
        trained = load_file(small.root / "models/resnet18.safetensors")
        moved.append((trained["conv1.weight"] - begun).norm().item())
        heads.append(trained["fc.3.weight"])
    assert moved[1] == pytest.approx(0.01 * moved[0], rel=0.5)
    torch.testing.assert_close(*heads, rtol=0.1, atol=0.001)


@pytest.mark.parametrize("augment", ["none", "flip", "crop_and_flip"])
def test_pictures_are_trained_on_at_the_size_asked_for(
    augment: str, small: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.params["train"] |= {"augment": augment, "image_size": 24, "epochs": 1}
    small.write_params()
    seen = set()

    def build(*arguments: object) -> torch.nn.Module:
        network = build_network(*arguments)
        network.register_forward_pre_hook(lambda module, images: seen.add((module.training, images[0].shape[1:])))
        return network

    monkeypatch.setattr(train, "build_network", build)
    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(small.root)
    train.main()
    assert {tuple(shape) for training, shape in seen if training} == {(3, 24, 24)}
    assert (False, (3, 32, 32)) in seen  # a first look at the size of validation


def test_a_crop_keeps_the_share_of_a_photo_that_was_asked_for() -> None:
    photo = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)  # each pixel holds the number of its column
    recipe = read_params(REPOSITORY / "params.yaml").train
    for crop_scale in (0.05, 0.9):
        augment = train.make_augmentation(replace(recipe, augment="crop_and_flip", crop_scale=crop_scale), 64)
        widths = [int(crop.max()) - int(crop.min()) + 1 for crop in (augment(photo) for _ in range(200))]
        least = 64 * (crop_scale * 3 / 4) ** 0.5  # the narrowest crop, of 3 to 4
        assert least - 3 < min(widths) < least + 9


def test_a_size_that_a_network_cannot_take_is_one_line(small: Project) -> None:
    small.params["networks"] = {"squeezenet1_1": {"weights": "none"}}
    small.params["train"]["image_size"] = 8
    small.write_params()
    text = error_line(small.run("train.py", "squeezenet1_1"))
    assert text.startswith("squeezenet1_1 cannot take pictures of 8 by 8: ")
    assert text.endswith("; change train.image_size")


def test_batchnorm_alone_of_a_network_without_is_refused(small: Project) -> None:
    small.params["networks"] = {"squeezenet1_1": {"weights": "none"}}
    small.params["train"]["layers"] = "batchnorm"
    small.write_params()
    assert error_line(small.run("train.py", "squeezenet1_1")) == (
        "params.yaml: train.layers is batchnorm, and squeezenet1_1 has none; expected head, last_half or all"
    )


def test_the_first_posts_recipe_runs_and_its_learning_rate_falls(small: Project) -> None:
    small.params["prepare"]["resize"] = "center_crop"
    small.params["train"] |= {"layers": "all", "head_width": 0, "optimizer": "sgd", "momentum": 0.9}
    small.params["train"] |= {
        "lr_step_size": 2,
        "lr_gamma": 0.1,
        "augment": "crop_and_flip",
        "crop_scale": 0.08,
        "batch_size": 4,
        "epochs": 5,
    }
    small.prepare()
    result = small.run("train.py", "resnet18")
    assert result.returncode == 0, result.stderr
    lr = pd.read_csv(small.root / "metrics/curves/resnet18.csv")["lr"]
    assert list(lr) == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    model = load_file(small.root / "models/resnet18.safetensors")
    assert {key: tuple(model[key].shape) for key in model if key.startswith("fc")} == {
        "fc.0.weight": (2, 512),
        "fc.0.bias": (2,),
    }


def test_a_one_cycle_learning_rate_rises_and_falls(small: Project) -> None:
    small.params["train"] |= {"lr_schedule": "one_cycle", "epochs": 4}
    small.write_params()
    assert small.run("train.py", "resnet18").returncode == 0
    rates = pd.read_csv(small.root / "metrics/curves/resnet18.csv")["lr"]  # at the start of each epoch
    assert rates[0] == pytest.approx(small.params["lr"] / 25)
    assert rates[0] < rates[1] > rates[2] > rates[3]
    assert rates.max() <= small.params["lr"]


def test_label_smoothing_keeps_a_network_from_being_sure(small: Project) -> None:
    losses = {}
    for label_smoothing in (0, 0.5):
        small.params["train"] |= {"label_smoothing": label_smoothing, "layers": "all", "epochs": 4}
        small.write_params()
        assert small.run("train.py", "resnet18").returncode == 0
        losses[label_smoothing] = pd.read_csv(small.root / "metrics/curves/resnet18.csv")["train_loss"].iloc[-1]
    # To give the right class 0.75 is the best that it can do: an entropy of 0.562 nats.
    assert losses[0] < 0.5 < 0.562 < losses[0.5]


def test_folded_batchnorm_changes_no_logits_and_not_the_network() -> None:
    torch.manual_seed(1)
    network = build_network("resnet18", "none", 16, 0.5, seed=1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    photos = torch.randn(2, 3, 64, 64)
    folded = fold_batchnorm(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(photos), network.eval()(photos), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_bfloat16_is_not_chosen_where_onednn_may_not_use_it(prepared: Project, tmp_path: Path, isa: str) -> None:
    shutil.copytree(prepared.root, tmp_path / "project")
    project = Project(tmp_path / "project")
    project.write_params()
    done = project.run("train.py", "resnet18", env={"ONEDNN_MAX_CPU_ISA": isa})
    assert "float32 on cpu" in done.stdout, done.stderr
    assert "onednn" not in done.stdout


def test_precision_can_be_set(small: Project) -> None:
    models = []
    for precision in ("float32", "bfloat16"):
        small.params["precision"] = precision
        small.params["train"]["epochs"] = 1
        small.write_params()
        assert f"{precision} on cpu" in small.run("train.py", "resnet18").stdout
        models.append(load_file(small.root / "models/resnet18.safetensors")["conv1.weight"])
    assert models[0].dtype == models[1].dtype == torch.float32
    assert not torch.equal(*models)


def test_a_loss_that_is_not_finite_ends_the_stage_without_a_model(small: Project) -> None:
    small.params |= {"lr": 1e30}
    small.params["train"]["optimizer"] = "sgd"
    small.write_params()
    assert "the loss is" in error_line(small.run("train.py", "resnet18"))
    assert not list(small.root.glob("models/*"))


def test_a_batch_larger_than_the_train_split_is_refused(small: Project) -> None:
    small.params["train"]["batch_size"] = 49
    small.write_params()
    assert error_line(small.run("train.py", "resnet18")) == (
        "params.yaml: train.batch_size is 49; expected at most prepare.split.train, 48"
    )
    small.params["prepare"]["split"]["train"] = 60  # but the file that prepare wrote has fewer
    small.write_params()
    assert error_line(small.run("train.py", "resnet18")) == (
        "params.yaml: train.batch_size is 49; expected at most 48, all of train"
    )


def test_train_says_what_it_lacks(prepared: Project, project: Project) -> None:
    project.write_params()
    assert "data/prepared/train.safetensors" in error_line(project.run("train.py", "resnet18"))
    assert "resnet50 is not under networks" in error_line(project.run("train.py", "resnet50"))
    assert "expected one argument" in error_line(project.run("train.py"))


@pytest.mark.parametrize("name", ["resnet34", "mobilenet_v2", "vgg11_bn", "squeezenet1_1", "googlenet", "densenet121"])
def test_any_classification_network_gets_a_head_for_two_classes(name: str) -> None:
    network = build_network(name, "none", head_width=512, dropout=0.5, seed=1).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    [head] = [module for module in network.modules() if isinstance(module, Head)]
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mnasnet0_5"])
def test_a_model_gives_the_same_logits_after_saving_and_loading(tmp_path: Path, name: str) -> None:
    """GoogLeNet scales its input anew, by an attribute that no state_dict holds; MNASNet asks for a version there."""
    network = build_network(name, str(write_weights(tmp_path, name)), 512, 0.5, seed=1).eval()
    description = {"network": name, "head_width": 512, "dropout": 0.5}
    save_network(tmp_path / "model.safetensors", network.state_dict(), description)
    loaded, loaded_description = load_network(tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(1))
    assert torch.equal(loaded.eval()(images), network(images))
    assert loaded_description == description
    assert getattr(network, "transform_input", True) is True


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121", "efficientnet_b0", "swin_t"])
def test_the_last_half_splits_no_layer_and_nothing_drops_out_below_it(name: str) -> None:
    network = build_network(name, "none", head_width=512, dropout=0.5, seed=1)
    head, body = set_trainable(network, "last_half")
    set_training(network, "last_half")
    tensors = len(list(network.parameters())) - len(head)
    assert 0.4 * tensors < len(body) <= (tensors + 1) / 2
    modes = {}
    for path, module in network.named_modules():
        own = {parameter.requires_grad for parameter in module.parameters(recurse=False)}
        assert len(own) <= 1, path
        parts = list(module.parameters())
        if parts and not any(parameter.requires_grad for parameter in parts):
            modes |= {id(part): part.training for part in module.modules()}
    assert modes
    assert not any(modes.values())
    assert all(module.training for module in network.modules() if isinstance(module, Head))


def test_published_files_in_older_spellings_load(tmp_path: Path) -> None:
    """Some lack BatchNorm's num_batches_tracked; DenseNet's write norm.1 where its layers are called norm1."""
    for name, spell in {
        "resnet18": lambda key: None if key.endswith("num_batches_tracked") else key,
        "densenet121": lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key),
    }.items():
        state_dict = torch.load(write_weights(tmp_path, name), weights_only=True)
        older = {spell(key): tensor for key, tensor in state_dict.items() if spell(key)}
        assert older.keys() != state_dict.keys()
        loaded = build_network(name, str(save_weights(tmp_path, name, older)), 512, 0.5, seed=1).state_dict()
        body = [key for key in state_dict if key in loaded and not key.endswith("num_batches_tracked")]
        assert len(body) > 90
        assert all(torch.equal(loaded[key], state_dict[key]) for key in body)


def test_weights_are_taken_from_a_file_only_if_its_name_and_content_agree(tmp_path: Path) -> None:
    path = write_weights(tmp_path, "resnet18")
    network = build_network("resnet18", str(path), 512, 0.5, seed=1)
    assert torch.equal(network.state_dict()["conv1.weight"], torch.load(path, weights_only=True)["conv1.weight"])

    with pytest.raises(UserError, match=r"networks\.resnet34\.weights: .* holds another network's weights"):
        build_network("resnet34", str(path), 512, 0.5, seed=1)
    with pytest.raises(UserError, match=r"networks\.mobilenet_v2\.weights: .* holds another network's weights"):
        build_network("mobilenet_v2", str(path), 512, 0.5, seed=1)
    larger = write_weights(tmp_path, "resnet34")  # all that resnet18 has, and more
    with pytest.raises(UserError, match=r"another network's weights: they differ in layer1\.2"):
        build_network("resnet18", str(larger), 512, 0.5, seed=1)
    wrong = path.rename(tmp_path / "resnet18-00000000.pth")
    with pytest.raises(UserError, match=r"its SHA-256 begins [0-9a-f]{8}, not 00000000"):
        build_network("resnet18", str(wrong), 512, 0.5, seed=1)
    unnamed = wrong.rename(tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=rf"; rename it to {path.name}$"):
        build_network("resnet18", str(unnamed), 512, 0.5, seed=1)
    with pytest.raises(UserError, match="cannot be read"):
        build_network("resnet18", str(tmp_path / "resnet18-0123abcd.pth"), 512, 0.5, seed=1)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_weights_of_wrapped_networks_and_of_checkpoints_are_found(tmp_path: Path, prefix: str, suffix: str) -> None:
    """As DataParallel, Lightning and torch.compile save them, and published safetensors files."""
    plain = torchvision.models.squeezenet1_1(weights=None).state_dict()
    wrapped = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
    if suffix == ".safetensors":
        path = name_by_hash(tmp_path, "squeezenet1_1", suffix, save_safetensors(wrapped))
    elif suffix == ".ckpt":
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
        loss = {"criterion.weight": torch.ones(1000)} if prefix else {}
        content = {"epoch": 3, "optimizer_states": [optimizer], "state_dict": wrapped | loss, "metrics": {}}
        path = save_weights(tmp_path, "squeezenet1_1", content, suffix)
    else:
        path = save_weights(tmp_path, "squeezenet1_1", wrapped)
    built = build_network("squeezenet1_1", str(path), 512, 0.5, seed=1).state_dict()
    body = [name for name in plain if not name.startswith("classifier.")]
    assert all(torch.equal(built[name], plain[name]) for name in body)


class Harmful:
    """What a pickle may hold: loading it calls a function, here one that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path) -> None:
    path = save_weights(tmp_path, "resnet18", {"conv1.weight": Harmful(tmp_path / "harm")})
    with pytest.raises(UserError, match="is not a file of weights that can be loaded without running code in it"):
        build_network("resnet18", str(path), 512, 0.5, seed=1)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 and no zip", pickle.dumps({"conv1.weight": 1})])
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^networks\.resnet18\.weights: .*resnet18-[0-9a-f]{8}\.pth ") as error:
        build_network("resnet18", str(path), 512, 0.5, seed=1)
    assert "\n" not in str(error.value)


def test_names_that_torchvision_does_not_know_are_refused() -> None:
    with pytest.raises(UserError, match=r"networks\.resnet19: torchvision has no such network; it has resnet1"):
        build_network("resnet19", "none", 512, 0.5, seed=1)
    for weights in ("IMAGENET", "DEFAULT"):  # torchvision may give DEFAULT another meaning tomorrow
        with pytest.raises(UserError, match=rf"networks\.resnet18\.weights is '{weights}'.*IMAGENET1K_V1"):
            build_network("resnet18", weights, 512, 0.5, seed=1)


def test_evaluate_refuses_models_that_do_not_fit(evaluated: Project, tmp_path: Path) -> None:
    shutil.copytree(evaluated.root, tmp_path / "project")
    project = Project(tmp_path / "project")
    project.params = evaluated.params
    scores, model = project.root / "metrics/evaluate.json", project.root / "models/resnet18.safetensors"
    earlier_scores = scores.read_bytes()

    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    assert "models/resnet18.safetensors: is not a model" in error_line(project.run("evaluate.py"))

    model.rename(project.root / "models/resnet34.safetensors")
    assert "there is no models/resnet18.safetensors; train resnet18" in error_line(project.run("evaluate.py"))
    model.write_bytes(whole)
    assert "delete models/resnet34.safetensors" in error_line(project.run("evaluate.py"))
    (project.root / "models/resnet34.safetensors").unlink()

    project.params["prepare"]["seed"] = 2  # train of the one draw holds photos of the other's test
    project.prepare()
    assert "was trained with another draw" in error_line(project.run("evaluate.py"))
    project.params["prepare"] |= {"seed": 1, "image_size": 40}
    project.prepare()
    assert "was trained with another image_size" in error_line(project.run("evaluate.py"))
    assert scores.read_bytes() == earlier_scores


def test_both_views_of_a_photo_are_averaged(evaluated: Project, tmp_path: Path) -> None:
    shutil.copytree(evaluated.root, tmp_path / "project")
    project = Project(tmp_path / "project")

    def evaluated_logits(test_time_flip: bool) -> np.ndarray:
        project.params = evaluated.params | {"test_time_flip": test_time_flip, "precision": "float32"}
        project.write_params()
        result = project.run("evaluate.py")
        assert result.returncode == 0, result.stderr
        predictions = pd.read_csv(project.root / "metrics/predictions.csv")
        return predictions[["logit_cat", "logit_dog"]].to_numpy()

    as_they_are, both_views = evaluated_logits(test_time_flip=False), evaluated_logits(test_time_flip=True)
    for split in ("validation", "test"):
        pixels, labels, description = project.packed(split)
        file = project.root / f"data/prepared/{split}.safetensors"
        tensors = {"pixels": pixels[:, :, ::-1].copy(), "labels": labels}
        save_file(tensors, file, {"description": json.dumps(description)})
    mirrored = evaluated_logits(test_time_flip=False)
    assert np.abs(as_they_are - mirrored).max() > 0.001
    assert both_views == pytest.approx((as_they_are + mirrored) / 2, abs=1e-4)
