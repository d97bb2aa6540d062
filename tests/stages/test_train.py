"""The train stage, on synthetic photos."""

import re

import train
from pipeline.core.all_params import Params
from pipeline.core.read_params import read_params
from pipeline.networks import checkpoint, compute, fitting, training
from pipeline.networks.building import Head, build_network
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.stepping import Note, TrainingStep
from pipeline.scores.calibration import log_loss
from pipeline.scores.selection import explain_choice, find_trouble
from tests.support.photos import encode
from tests.support.projects import REPOSITORY, Project, error_line
from tests.support.weight_files import write_weights

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file


@pytest.mark.slow
def test_train_gives_the_same_bytes_again_and_others_with_another_seed(small: Project) -> None:
    files = ("models/networks/resnet18.safetensors", "metrics/train/resnet18.json")
    files += ("metrics/curves/resnet18.csv", "metrics/steps/resnet18.csv")

    def trained() -> list[bytes]:
        small.succeed("train.py", "resnet18")
        return [(small.root / file).read_bytes() for file in files]

    small.params["train"] |= {"augment": "crop_and_flip", "epochs": 1}  # dropout, order and augmentation are random
    first = trained()
    checkpoint = small.root / "models/networks/resnet18.checkpoint"  # of an interrupted run of more epochs
    leftovers = (checkpoint, checkpoint.with_name(f"{checkpoint.name}.partial"))
    for leftover in leftovers:
        leftover.touch()
    assert trained() == first
    assert not any(leftover.exists() for leftover in leftovers)
    small.params["train"]["seed"] = 2
    assert trained()[0] != first[0]


@pytest.mark.slow
def test_train_gives_a_network_its_own_params_and_the_others_the_common_ones(tiny: Project) -> None:
    def trained(name: str) -> bytes:
        tiny.succeed("train.py", name)
        return (tiny.root / f"models/networks/{name}.safetensors").read_bytes()

    common = trained("resnet34")
    tiny.params["networks"]["resnet18"] |= {"lr": "1e-2", "train": {"optimizer": "sgd", "epochs": 2}}
    own = trained("resnet18")
    assert "resnet18: 8 photos, epochs: 2, " in tiny.last_run.stdout
    assert trained("resnet34") == common
    del tiny.params["networks"]["resnet18"]["lr"], tiny.params["networks"]["resnet18"]["train"]
    assert trained("resnet18") != own
    tiny.params["lr"] = 0.01
    tiny.params["train"] |= {"optimizer": "sgd", "epochs": 2}
    assert trained("resnet18") == own


def scripted(loss: float) -> dict:
    """What `validate` returns, if the network is as confident as it should be."""
    scores = {"validation_loss": loss, "validation_calibrated_loss": loss, "validation_accuracy": 0.5}
    return {**scores, "temperature": 1.0}


@pytest.mark.slow
def test_train_computes_with_the_threads_asked_for_and_records_them(tiny: Project) -> None:
    for threads, used in ("auto", 1), (2, 2):  # conftest.py sets OMP_NUM_THREADS to 1
        tiny.params["threads"] = threads
        tiny.succeed("train.py", "resnet18")
        assert tiny.read_json("metrics/train/resnet18.json")["threads"] == used


@pytest.mark.parametrize(
    ("threads", "environment", "cores", "used"),
    [
        ("auto", {}, 3, 3),  # a container with a limit
        ("auto", {}, 8, 4),
        ("auto", {"OMP_NUM_THREADS": "4"}, 3, 4),
        (2, {"OMP_NUM_THREADS": "4"}, 3, 2),
        (6, {}, 3, 6),
    ],
)
def test_threads_are_no_more_than_the_usable_cores_unless_asked_for(
    threads: int | str, environment: dict[str, str], cores: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(compute, "usable_cores", lambda: cores)
    before = torch.get_num_threads()
    torch.set_num_threads(4)  # PyTorch's choice
    try:
        compute.set_up("cpu", "float32", threads)
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_train_keeps_the_best_epoch_unchanged(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    states, losses, saved = [], iter([0.5, 0.1, 0.4]), []

    def scripted_validation(run: training.Training) -> dict:
        states.append({key: tensor.clone() for key, tensor in run.network.state_dict().items()})
        run.recall = [0.5, 0.5]
        return scripted(next(losses))

    tiny.params["train"] |= {"layers": "all", "epochs": 3}
    tiny.write_params()
    monkeypatch.setattr(training.Training, "validate", scripted_validation)
    monkeypatch.setattr(checkpoint.Checkpoint, "save", lambda _, state: saved.append(state["curve"][-1]["epoch"]))
    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(tiny.root)
    train.main()

    assert saved == [1, 2]  # the results follow epoch 3 at once
    kept = load_file(tiny.root / "models/networks/resnet18.safetensors")
    assert kept.keys() == states[1].keys()
    assert all(torch.equal(kept[key], states[1][key]) for key in kept)
    assert not torch.equal(kept["conv1.weight"], states[2]["conv1.weight"])
    assert tiny.read_json("metrics/train/resnet18.json")["kept_epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        ("head", r"fc\."),
        ("batchnorm", r"fc\.|.*(bn\d|downsample\.1)\."),
        ("last_half", r"(layer3|layer4|fc)\."),
        ("all", ""),
    ],
)
def test_train_changes_only_the_layers_named(tiny: Project, layers: str, trained: str) -> None:
    weights = write_weights(tiny.root, "resnet18")
    tiny.params["networks"]["resnet18"]["weights"] = weights.name
    tiny.params["train"] |= {"layers": layers, "epochs": 1}
    tiny.succeed("train.py", "resnet18")

    before = torch.load(weights, weights_only=True)
    after = load_file(tiny.root / "models/networks/resnet18.safetensors")
    for key in after.keys() & before.keys():
        changed = not torch.equal(before[key], after[key])
        assert changed == bool(re.match(trained, key)), key


@pytest.mark.slow
def test_train_applies_a_lower_learning_rate_to_the_body_than_to_the_head(tiny: Project) -> None:
    weights = write_weights(tiny.root, "resnet18")
    tiny.params["networks"]["resnet18"]["weights"] = weights.name
    tiny.params["train"] |= {
        "layers": "all",
        "optimizer": "sgd",
        "momentum": 0,
        "lr_schedule": "one_cycle",
        "epochs": 1,
    }
    initial = torch.load(weights, weights_only=True)["conv1.weight"]
    moved, heads = [], []
    for factor in (1.0, 0.01):
        tiny.params["train"]["backbone_lr_factor"] = factor
        tiny.succeed("train.py", "resnet18")
        trained = load_file(tiny.root / "models/networks/resnet18.safetensors")
        moved.append((trained["conv1.weight"] - initial).norm().item())
        heads.append(trained["fc.3.weight"] * tiny.read_json("metrics/train/resnet18.json")["temperature"])
    assert moved[1] == pytest.approx(0.01 * moved[0], rel=0.5)
    torch.testing.assert_close(*heads, rtol=0.1, atol=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", "flip", "crop_and_flip"])
def test_train_uses_images_of_the_size_asked_for(augment: str, tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.params["prepare"]["image_size"] = 40
    tiny.params["train"] |= {"augment": augment, "image_size": 32, "epochs": 1}
    tiny.prepare()
    seen = set()

    def build(*arguments: object) -> torch.nn.Module:
        network = build_network(*arguments)
        network.register_forward_pre_hook(lambda module, images: seen.add((module.training, images[0].shape[1:])))
        return network

    monkeypatch.setattr(training, "build_network", build)
    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(tiny.root)
    train.main()
    assert {tuple(shape) for training, shape in seen if training} == {(3, 32, 32)}
    assert (False, (3, 40, 40)) in seen  # also the check before training that the network takes this size


def test_train_crops_keep_the_share_of_a_photo_asked_for() -> None:
    photos = torch.arange(64, dtype=torch.uint8).expand(200, 3, 64, 64)  # each pixel is the number of its column
    params = read_params(Params, REPOSITORY / "params.yaml").train
    for crop_scale in (0.05, 0.9):
        update = {"augment": "crop_and_flip", "crop_scale": crop_scale}
        augment = training.make_augmentation(params.model_copy(update=update), 64)
        widths = [int(crop.max()) - int(crop.min()) + 1 for crop in augment(photos)]
        least = 64 * (crop_scale * 3 / 4) ** 0.5  # the narrowest crop, with an aspect ratio of 3 to 4
        assert least - 3 < min(widths) < least + 9


def test_train_names_an_image_size_that_the_network_cannot_take(small: Project) -> None:
    small.params["networks"] = {"alexnet": {"weights": "none"}}
    small.write_params()
    text = error_line(small.run("train.py", "alexnet"))
    assert text.startswith("alexnet cannot take images of 32x32 pixels (")
    assert text.endswith("); set prepare.image_size to 63, the nearest size that works")


def test_train_refuses_batchnorm_layers_of_a_network_without_any(small: Project) -> None:
    small.params["networks"] = {"squeezenet1_1": {"weights": "none"}}
    small.params["train"]["layers"] = "batchnorm"
    small.write_params()
    assert error_line(small.run("train.py", "squeezenet1_1")) == (
        "params.yaml: train.layers is batchnorm, but squeezenet1_1 has no BatchNorm layers; expected head, last_half "
        "or all"
    )


@pytest.mark.slow
def test_train_follows_the_first_posts_recipe_with_a_falling_learning_rate(tiny: Project) -> None:
    tiny.recipe("pytorch-tutorial")
    tiny.params["prepare"]["image_size"] = 32
    tiny.split(train=8, validation=4, test=4)
    tiny.params["train"] |= {"lr_step_size": 2, "epochs": 5}
    tiny.prepare()
    tiny.succeed("train.py", "resnet18")
    lr = pd.read_csv(tiny.root / "metrics/curves/resnet18.csv")["lr"]
    assert list(lr) == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    model = load_file(tiny.root / "models/networks/resnet18.safetensors")
    assert {key: tuple(model[key].shape) for key in model if key.startswith("fc")} == {
        "fc.0.weight": (2, 512),
        "fc.0.bias": (2,),
    }


def fit(small: Project, **changes: object) -> pd.DataFrame:
    """Train from a fitted head; returns the learning curve."""
    small.params["networks"]["resnet18"]["weights"] = write_weights(small.root, "resnet18").name
    small.params["train"] |= {"head_init": "fitted", "head_width": None, "layers": "last_half", "epochs": 1, **changes}
    small.succeed("train.py", "resnet18")
    return pd.read_csv(small.root / "metrics/curves/resnet18.csv")


@pytest.mark.slow
def test_train_fits_the_head_before_the_first_step(small: Project) -> None:
    curve = fit(small)
    assert curve["epoch"].tolist() == [0, 1]
    assert curve.loc[0, "lr"] == 0
    # The photos are easy: reddish and bluish noise. A random head is right for half of them.
    assert curve.loc[0, "validation_accuracy"] == 1
    assert curve.loc[0, "train_loss"] < 0.2


@pytest.mark.slow
def test_train_keeps_the_fitted_head_if_training_makes_it_worse(small: Project) -> None:
    small.params["networks"]["resnet18"]["lr"] = 1.0
    curve = fit(small)
    assert curve.loc[1, "validation_loss"] > curve.loc[0, "validation_loss"]
    assert small.read_json("metrics/train/resnet18.json")["kept_epoch"] == 0
    *_, warning, _mean, _mean, _mean, last = small.last_run.stdout.splitlines()
    assert re.fullmatch(
        r"warning: resnet18 epoch 1: the .* loss .*guessing.*; networks.resnet18.lr is too high", warning
    )
    assert last.startswith("resnet18: kept the fitted head (epoch 0), without training: validation loss ")
    assert last.endswith(
        f"{curve.loc[1, 'validation_calibrated_loss']:.4f} after the last epoch); try networks.resnet18.lr=0.1"
    )
    before = torch.load(small.root / small.params["networks"]["resnet18"]["weights"], weights_only=True)
    after = load_file(small.root / "models/networks/resnet18.safetensors")
    assert torch.equal(before["layer4.1.conv2.weight"], after["layer4.1.conv2.weight"])


@pytest.mark.slow
def test_train_does_not_prefer_a_network_because_it_is_more_confident(
    small: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As with label smoothing: training corrects all mistakes of the fitted head, and lowers the confidence."""
    mean = torch.tensor([2.0] * 22 + [-1.0] * 2)
    margins = iter([torch.tensor([4.0] * 21 + [-1.0] * 3), torch.full((24,), 0.2), mean, mean, mean])

    def scripted_logits(network: torch.nn.Module, packed: PackedSplit, *_: object) -> torch.Tensor:
        signed = next(margins) * (2 * packed.labels - 1)
        return torch.stack([-signed, signed], dim=1)

    monkeypatch.setattr(training, "predict_logits", scripted_logits)
    monkeypatch.setattr(training.Training, "fit_head", lambda _: 0.1)
    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(small.root)
    small.params["train"] |= {"head_init": "fitted", "head_width": None, "layers": "head", "epochs": 1}
    small.params["train"]["label_smoothing"] = 0.1
    small.write_params()
    train.main()
    curve = pd.read_csv("metrics/curves/resnet18.csv")
    assert curve.loc[1, "validation_loss"] > curve.loc[0, "validation_loss"]
    assert curve.loc[1, "validation_calibrated_loss"] < curve.loc[0, "validation_calibrated_loss"]
    assert small.read_json("metrics/train/resnet18.json")["kept_epoch"] == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "resnet18: fitting the head to the network's features"
    assert re.fullmatch(r"resnet18 epoch 0/1: .*, \d+ s", lines[3])
    assert re.match(r"(\S+) epoch (\d+)/(\d+): .*\((\S+) calibrated\)", lines[4])  # tools/search.py reads it
    assert lines[-1].startswith(
        "resnet18: kept epoch 1 of 1: validation loss 0.5130 (0.0000 calibrated), validation accuracy 1.000000"
    )


@pytest.mark.slow
def test_train_with_balanced_class_weights_recognises_more_of_a_rare_class(project: Project) -> None:
    """Every photo is evenly grey; most dogs, of which there are few, are a little brighter than most cats."""
    random = np.random.default_rng(1)
    shades = [
        *(("cat", shade) for shade in random.normal(100, 12, 240)),
        *(("dog", s) for s in random.normal(115, 12, 48)),
    ]
    noise = random.normal(0, 1, (len(shades), 32, 32, 3))
    project.photos(
        {
            f"{label}/{number}.png": encode(Image.fromarray((pixels - pixels.mean() + shade).astype("uint8")), "PNG")
            for number, ((label, shade), pixels) in enumerate(zip(shades, noise, strict=True))
        },
        "photos",
    )
    project.params |= {"lr": 1e-5, "networks": {"resnet18": {"weights": write_weights(project.root, "resnet18").name}}}
    project.params["train"] |= {"head_init": "fitted", "head_width": None, "layers": "head", "batch_size": 8}
    project.split(train=96, validation=96, test=96)
    project.prepare()
    recall = {}
    for weights in ("none", "balanced"):
        project.params["train"]["class_weights"] = weights
        *_, trained, _kept = project.succeed("train.py", "resnet18").splitlines()
        [tested] = (line for line in project.succeed("evaluate.py").splitlines() if line.startswith("resnet18 on test"))
        for split, line in ("validation", trained), ("test", tested):
            text = (
                rf"resnet18 on {split}: balanced accuracy (0\.\d{{4}}|1\.0000), recall of the rarest class, dog, "
                r"(0\.\d{4}|1\.0000) \(\d+ of 16\)(; try train\.class_weights=balanced)?"
            )
            found = re.fullmatch(text, line)
            assert found, line
            assert bool(found[3]) == (weights == "none")
            recall[weights, split] = float(found[2])
    more = sum(recall["balanced", split] - recall["none", split] for split in ("validation", "test"))
    assert more >= 0.4


def test_a_weight_in_the_fitted_head_counts_a_photo_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 1 has half as many photos as class 0."""
    random = torch.Generator().manual_seed(1)
    rare = torch.randn(20, 6, generator=random) + 0.5
    common = torch.cat([rare, rare])[:, torch.randperm(6, generator=random)] - 1
    monkeypatch.setattr(fitting, "predict_features", lambda _, packed, *__: packed.content)

    def fitted(repeats: int, balanced: bool) -> torch.Tensor:
        labels = torch.tensor([0] * len(common) + [1] * len(rare) * repeats)
        packed = PackedSplit(torch.cat([common, *[rare] * repeats]), labels, {"classes": ["common", "rare"]})
        network = torch.nn.Sequential(Head(6, 2, None, 0.0))
        fitting.fit_head(network, packed, None, balanced, torch.float32, "")
        return network(common).detach()

    weighted = fitted(repeats=1, balanced=True)
    assert torch.allclose(weighted, fitted(repeats=2, balanced=False), atol=0.05)
    assert not torch.allclose(weighted, fitted(repeats=1, balanced=False), atol=0.2)


def test_a_class_weight_counts_a_photo_as_often_as_it_says_in_a_step() -> None:
    images, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 0, 0, 1, 1, 1])
    packed = PackedSplit(images, torch.tensor([0, 0, 0, 1]), {"classes": ["common", "rare"]})
    assert packed.balanced_weights().tolist() == pytest.approx([2 / 3, 2])

    def after_a_step(rows: list[int], class_weights: torch.Tensor | None) -> torch.Tensor:
        torch.manual_seed(1)
        network = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        step = TrainingStep(network, optimizer, scheduler, 0.1, class_weights, torch.float32, as_graph=False)
        step(images[rows], labels[rows])
        return network.weight.detach()

    weighted = after_a_step([0, 1, 2, 3], packed.balanced_weights())
    assert torch.allclose(weighted, after_a_step([0, 1, 2, 3, 3, 3], None), atol=1e-6)
    assert not torch.allclose(weighted, after_a_step([0, 1, 2, 3], None), atol=1e-2)


@pytest.mark.slow
def test_train_calibrates_the_model_on_validation(small: Project) -> None:
    """The logits of the model are divided by the temperature; multiplied by it, they have the loss during training."""
    small.params["train"] |= {"epochs": 1, "label_smoothing": 0.5}  # which makes a network underconfident
    small.succeed("train.py", "resnet18")
    small.params["networks"].pop("resnet34")
    small.succeed("evaluate.py")
    trained = small.read_json("metrics/train/resnet18.json")
    assert trained["temperature"] != 1
    predictions = pd.read_csv(small.root / "metrics/predictions/networks.csv").query("split == 'validation'")
    logits = predictions[["logit_cat", "logit_dog"]].to_numpy()
    labels = (predictions["label"] == "dog").to_numpy(dtype=int)
    assert log_loss(logits * trained["temperature"], labels) == pytest.approx(trained["validation_loss"], abs=1e-4)
    assert log_loss(logits, labels) < trained["validation_loss"]
    assert trained["validation_accuracy"] == (logits.argmax(axis=1) == labels).mean()


@pytest.mark.parametrize(
    ("layers", "statistics", "advice"),
    [
        ("head", "fixed", "; set train.layers to all and train.batchnorm_statistics to updated"),
        ("head", "updated", "; set train.layers to all"),
        ("all", "fixed", "; set train.batchnorm_statistics to updated"),
        ("all", "updated", None),
    ],
)
def test_train_asks_for_what_random_weights_need_and_do_not_have(
    tiny: Project, monkeypatch: pytest.MonkeyPatch, layers: str, statistics: str, advice: str | None
) -> None:
    tiny.params["train"] |= {"layers": layers, "batchnorm_statistics": statistics}
    tiny.write_params()
    monkeypatch.chdir(tiny.root)
    _, *notes = train.introduction("resnet18", read_params(Params), 8, "float32 on cpu", processes=1).splitlines()
    note = "note: networks.resnet18.weights is none, so part of the network stays as it was initialised"
    assert notes == ([] if advice is None else [note + advice])


def curve_of(*epochs: tuple[float, float], rates: tuple[float, ...] = ()) -> list[dict]:
    """A learning curve of train losses and validation losses; the first is that of the fitted head."""
    rates = rates or (0.0, *[1.0] * (len(epochs) - 1))
    return [
        {"epoch": epoch, "lr": rate, "train_loss": train, **scripted(loss)}
        for epoch, ((train, loss), rate) in enumerate(zip(epochs, rates, strict=True))
    ]


@pytest.mark.parametrize(
    ("curve", "trouble"),
    [
        (curve_of((0.05, 0.08)), ""),
        (curve_of((0.05, 0.08), (0.2, 0.2)), ""),  # the head's train loss is no measure
        (
            curve_of((0.05, 0.08), (0.2, 0.69)),
            r"the calibrated validation loss has risen .* \(guessing: .*\); lr is too high",
        ),
        (curve_of((0.05, 0.08), (0.2, 0.5)), ""),  # the first epoch
        (curve_of((0.05, 0.08), (0.2, 0.5), (0.2, 0.5), rates=(0, 0.1, 1)), ""),  # the rate rises
        (
            curve_of((0.05, 0.08), (0.2, 0.5), (0.2, 0.69), rates=(0, 0.1, 1)),
            r"the calibrated validation loss has risen from 0.0800 to 0.6900 .*; lr is too high",
        ),
        (
            curve_of((0.05, 0.08), (0.2, 0.5), (0.2, 0.5)),
            r"the calibrated validation loss has risen from 0.0800 to 0.5000 .*; lr is too high",
        ),
        (curve_of((0.7, 0.7), (0.7, 0.69)), ""),  # it has not learned anything yet
        (curve_of((0.05, 0.08), (1.5, 0.3))[1:], ""),  # a random head begins with a high loss
        (curve_of((0.05, 0.08), (1.5, 0.69))[1:], "the train loss .1.5000. is far above that of guessing .*"),
        (
            curve_of((0.05, 0.08), (3.5, 0.1)),
            r"the train loss \(3.5000\) is far above that of guessing .*; lr is too high",
        ),
        (curve_of((0.05, 0.08), (0.2, 0.1), (0.1, 0.09)), ""),
        (curve_of((0.05, 0.08), (0.2, 0.1), (0.3, 0.2)), ".* has risen from 0.2000 in epoch 1 to 0.3000; lr may be .*"),
        (
            curve_of((0.05, 0.08), (0.2, 0.1), (0.23, 0.1), (0.26, 0.1)),
            ".* has risen from 0.2000 in epoch 1 to 0.2600; .*",
        ),
        (curve_of((0.05, 0.05), (0.01, 0.05), (0.02, 0.05)), ""),  # noise
        (curve_of((0.05, 0.08), (0.2, 0.1), (0.3, 0.2), rates=(0, 0.1, 1)), ""),  # the rate rises
        (
            curve_of((0.05, 0.08), (0.2, 0.1), (0.1, 0.13)),
            ".* validation loss has risen from 0.1000 in epoch 1 to 0.1300, .* overfits; use .*",
        ),
        (
            curve_of((0.05, 0.4), (0.2, 0.4), (0.1, 0.4)),
            r"the train loss \(0.1000\) is far below the .* validation loss \(0.4000\): the network overfits; .*",
        ),
        (curve_of((0.05, 0.4), (0.1, 0.4)), ""),  # the first epoch, in which every photo is new
        (curve_of((0.05, 0.4), (0.1, 0.4), (0.1, 0.4), (0.09, 0.4)), ""),  # said before
        (curve_of((0.05, 0.05), (0.01, 0.04)), ""),  # both are close to 0
    ],
)
def test_train_names_what_goes_wrong(curve: list[dict], trouble: str) -> None:
    assert re.fullmatch(trouble, find_trouble(curve, classes=2))


def test_train_says_why_it_kept_an_epoch_before_the_last_one() -> None:
    params = read_params(Params, REPOSITORY / "params.yaml").train.model_copy(
        update={"epochs": 3, "lr_schedule": "step"}
    )
    curve = curve_of((0.05, 0.3), (0.2, 0.2), (0.1, 0.1), (0.05, 0.15))
    assert explain_choice(curve, [], 2, params, lr=0.001) == (
        "kept epoch 2 of 3: validation loss 0.1000 (0.1000 calibrated), validation accuracy 0.500000; its calibrated "
        "validation loss is the lowest (0.1000, and 0.1500 after the last epoch); try train.epochs=2"
    )


def test_train_says_if_the_kept_epoch_is_no_better_than_guessing() -> None:
    params = read_params(Params, REPOSITORY / "params.yaml").train
    for loss, end in ((0.69, ", no better than guessing"), (0.5, "")):
        curve = curve_of((0.7, 0.7), *[(0.7, loss)] * params.epochs)
        scores = f"validation loss {loss:.4f} ({loss:.4f} calibrated), validation accuracy 0.500000"
        assert explain_choice(curve, [], 2, params, lr=0.001).startswith(f"kept epoch 6 of 6: {scores}{end}; ")


@pytest.mark.parametrize(
    ("schedule", "losses", "mean", "kept"),
    [
        ("one_cycle", (0.3, 0.4, 0.2), 0.25, "epoch 2 of 2: … (0.3000 with …, 0.2500 with the best mean …)"),
        ("one_cycle", (0.3, 0.4, 0.2), 0.1, "the mean of …, weighted 1:3: … (0.3000 with …, 0.2000 after …)"),
        ("one_cycle", (0.3, 0.2, 0.4), 0.35, "the fitted head … (0.3000, and 0.4000 after the last …); try lr=0.0003"),
        ("step", (0.3, 0.25, 0.2), None, "epoch 2 of 2: …; its calibrated validation loss is the lowest"),
    ],
)
def test_train_says_why_it_kept_what_it_kept(
    schedule: str, losses: tuple[float, ...], mean: float | None, kept: str
) -> None:
    params = read_params(Params, REPOSITORY / "params.yaml").train
    params = params.model_copy(update={"epochs": 2, "lr_schedule": schedule})
    curve = curve_of(*((0.1, loss) for loss in losses))
    text = explain_choice(curve, [scripted(mean) | {"epoch": "0+2 (1:3)"}] if mean else [], 2, params, lr=0.001)
    assert re.fullmatch(f"kept {re.escape(kept).replace('…', '.*')}", text), text


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["fixed", "updated"])
def test_train_updates_the_statistics_of_batchnorm_if_asked_to(tiny: Project, statistics: str) -> None:
    tiny.params["networks"]["resnet18"]["weights"] = write_weights(tiny.root, "resnet18").name
    tiny.params["train"] |= {"layers": "last_half", "epochs": 1, "batchnorm_statistics": statistics}
    tiny.succeed("train.py", "resnet18")
    before = torch.load(tiny.root / tiny.params["networks"]["resnet18"]["weights"], weights_only=True)
    after = load_file(tiny.root / "models/networks/resnet18.safetensors")
    for key in ("layer4.1.bn2.running_mean", "layer4.1.bn2.running_var"):
        assert torch.equal(before[key], after[key]) == (statistics == "fixed"), key
    assert not torch.equal(before["layer4.1.bn2.weight"], after["layer4.1.bn2.weight"])


@pytest.mark.slow
def test_train_with_one_cycle_keeps_the_last_epoch_whatever_luck_another_one_had(
    tiny: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.1, 0.4])

    def scripted_validation(run: training.Training) -> dict:
        run.recall = [0.5, 0.5]
        return scripted(next(losses))

    monkeypatch.setattr(training.Training, "validate", scripted_validation)
    tiny.params["train"] |= {"layers": "head", "lr_schedule": "one_cycle", "epochs": 3}
    tiny.write_params()
    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(tiny.root)
    train.main()
    assert pd.read_csv("metrics/curves/resnet18.csv")["kept"].tolist() == [False, False, True]
    assert tiny.read_json("metrics/train/resnet18.json")["kept_epoch"] == 3


@pytest.mark.slow
def test_train_with_one_cycle_raises_and_lowers_the_learning_rate(tiny: Project) -> None:
    tiny.params["train"] |= {"layers": "head", "lr_schedule": "one_cycle", "epochs": 4}
    tiny.succeed("train.py", "resnet18")
    rates = pd.read_csv(tiny.root / "metrics/curves/resnet18.csv")["lr"]  # at the start of each epoch
    assert rates[0] == pytest.approx(tiny.params["lr"] / 25)
    assert rates[0] < rates[1] > rates[2] > rates[3]
    assert rates.max() <= tiny.params["lr"]
    steps = pd.read_csv(tiny.root / "metrics/steps/resnet18.csv")
    assert steps["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps["epoch"].tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert steps["lr"][::2].tolist() == pytest.approx(rates.tolist(), rel=1e-5)


@pytest.mark.slow
def test_train_has_fewer_rows_than_steps_if_there_are_many(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(small.root)
    monkeypatch.setattr(training, "STEP_ROWS", 3)
    small.params["train"] |= {"layers": "head", "epochs": 2}  # of six steps
    small.write_params()
    train.main()
    steps, curve = (pd.read_csv(f"metrics/{kind}/resnet18.csv") for kind in ("steps", "curves"))
    assert steps["step"].tolist() == [4, 6, 10, 12]
    means = [(4 * first + 2 * second) / 6 for first, second in steps["train_loss"].to_numpy().reshape(2, 2)]
    assert means == pytest.approx(curve["train_loss"].tolist(), abs=1e-5)


@pytest.mark.slow
def test_train_keeps_its_results_if_nobody_reads_its_last_line(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_reads(*_: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
    monkeypatch.chdir(tiny.root)
    monkeypatch.setattr("pipeline.scores.selection.explain_choice", nobody_reads)
    with pytest.raises(BrokenPipeError):
        train.main()
    assert (tiny.root / "models/networks/resnet18.safetensors").exists()
    assert "kept" in pd.read_csv("metrics/curves/resnet18.csv")
    assert len(pd.read_csv("metrics/steps/resnet18.csv"))


def test_notes_of_steps_do_not_depend_on_when_they_are_read() -> None:
    """A CPU is read at each note, a GPU, which would have to wait, less often."""
    images, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 0, 0, 1, 1, 1])

    def take_steps(reads: tuple[int, ...]) -> tuple[list[Note], list[float]]:
        torch.manual_seed(1)
        network = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
        step = TrainingStep(network, optimizer, scheduler, 0.0, None, torch.float32, as_graph=False)
        notes, losses = [], []
        step.start_epoch()
        for number in range(1, 7):
            losses.append(torch.nn.functional.cross_entropy(network(images), labels).item())
            step(images, labels, note=number % 2 == 0)
            notes += step.read_notes() if number in reads else []
        return notes, losses

    notes, losses = take_steps((1, 2, 3, 4, 5, 6))
    assert [note.step for note in notes] == [2, 4, 6]
    assert [note.lr for note in notes] == pytest.approx([1, 1, 0.1])
    assert [note.loss for note in notes] == pytest.approx(np.reshape(losses, (3, 2)).mean(axis=1).tolist())
    assert notes[-1].mean_loss == pytest.approx(np.mean(losses))
    assert notes[-1].accuracy in {correct / 6 for correct in range(7)} | {correct / 12 for correct in range(13)}
    assert take_steps((6,))[0] == take_steps((3, 6))[0] == notes


@pytest.mark.slow
def test_train_with_label_smoothing_keeps_the_network_from_being_sure(small: Project) -> None:
    losses = {}
    for label_smoothing in (0, 0.5):
        small.params["train"] |= {"label_smoothing": label_smoothing, "layers": "last_half", "epochs": 2}
        small.succeed("train.py", "resnet18")
        losses[label_smoothing] = pd.read_csv(small.root / "metrics/curves/resnet18.csv")["train_loss"].iloc[-1]
    # The best that it can do is a probability of 0.75 for the correct class: an entropy of 0.562 nats.
    assert losses[0] < 0.5 < 0.562 < losses[0.5]


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_train_does_not_choose_bfloat16_if_onednn_may_not_use_it(
    tiny: Project, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    printed = tiny.succeed("train.py", "resnet18")
    assert "float32 on cpu" in printed
    assert "onednn" not in printed


@pytest.mark.slow
def test_train_computes_in_the_precision_asked_for(tiny: Project) -> None:
    models = []
    for precision in ("float32", "bfloat16"):
        tiny.params["precision"] = precision
        tiny.params["train"]["layers"] = "all"
        assert f"{precision} on cpu" in tiny.succeed("train.py", "resnet18")
        models.append(load_file(tiny.root / "models/networks/resnet18.safetensors")["conv1.weight"])
    assert models[0].dtype == models[1].dtype == torch.float32
    assert not torch.equal(*models)


def test_train_ends_without_a_model_if_the_loss_is_not_finite(small: Project) -> None:
    small.params |= {"lr": 1e30}
    small.params["train"]["optimizer"] = "sgd"
    small.write_params()
    assert "the loss is" in error_line(small.run("train.py", "resnet18"))
    assert not list(small.root.glob("models/networks/*"))


def test_train_refuses_a_batch_larger_than_its_split(small: Project) -> None:
    small.params["train"]["batch_size"] = 49
    small.write_params()
    assert error_line(small.run("train.py", "resnet18")) == (
        "params.yaml: train.batch_size is 49; expected at most prepare.split.train (48)"
    )
    small.params["prepare"]["split"]["train"] = 60  # but the file that prepare wrote has fewer
    small.write_params()
    assert error_line(small.run("train.py", "resnet18")) == (
        "params.yaml: train.batch_size is 49; expected at most 48, the number of photos in train"
    )


def test_train_names_what_is_missing(project: Project) -> None:
    project.write_params()
    assert error_line(project.run("train.py", "resnet18")).startswith("data/prepared/train.safetensors")
    assert error_line(project.run("train.py", "resnet50")) == (
        "resnet50 is not under networks in params.yaml; expected one of resnet18, resnet34"
    )


def test_train_names_a_device_that_is_not_there(small: Project) -> None:
    """Without a GPU: conftest.py hides NVIDIA's."""
    small.params["device"] = "xpu"
    small.write_params()
    assert error_line(small.run("train.py", "resnet18")) == (
        "params.yaml: device is xpu, but PyTorch finds no accelerator here; expected cpu or auto"
    )


def test_sample_has_the_first_photos_and_one_of_each_class() -> None:
    labels = torch.tensor([0, 0, 1, 0, 0, 2, 2, 0])
    packed = PackedSplit(torch.arange(8), labels, {"classes": ["a", "b", "c", "d"]})  # d has no photo
    assert packed.sample(2).pixels.tolist() == [0, 1, 2, 5]
    assert packed.sample(3).labels.tolist() == [0, 0, 1, 2]
    assert packed.sample(6).pixels.tolist() == [0, 1, 2, 3, 4, 5]
    assert packed.sample(20).pixels.tolist() == list(range(8))
