"""timm's networks: what differs between their architectures, and the stages and tools that use them."""

import json
from pathlib import Path
from types import ModuleType

import ensemble
import evaluate
import reject
import train
from pipeline.core.errors import UserError
from pipeline.core.paths import on_disk
from pipeline.networks import training
from pipeline.networks.building import build_network, check_image_size, head_of, normalisation_of
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.explaining import heat_maps
from pipeline.networks.folding import fold_batchnorm
from pipeline.networks.freezing import set_trainable
from pipeline.networks.normalisation import IMAGENET, Normalisation
from pipeline.networks.predicting import predict_features
from tests.support.predictions import CLOSE, predicted_by
from tests.support.projects import NEEDS_TIMM, Project, copy_of, error_line
from tests.support.waiting import wait_for
from tests.support.weight_files import save_weights, write_weights

import pandas as pd
import pytest
import torch
import torchvision
from safetensors.numpy import load_file
from torch import nn

pytestmark = [pytest.mark.slow, NEEDS_TIMM]

VIT = "timm/vit_tiny_patch16_224"
NETWORKS = ("timm/resnet18", "timm/convnext_nano", "timm/efficientnet_b0", VIT, "timm/mobilenetv4_conv_small")
HALVES = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    """A network with BatchNorm statistics that are not those of a new one."""
    network = build_network(request.param, "none", 3, None, 0, seed=1).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_head_gets_the_features_before_timms_classifier(network: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        features = network.forward_head(network.forward_features(images), pre_logits=True)
        torch.testing.assert_close(network(images), head_of(network)(features))
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    packed = PackedSplit(pixels, torch.zeros(2, dtype=int), {}).normalised(HALVES)
    with torch.inference_mode():
        normalised = ((pixels / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        features = network.forward_head(network.forward_features(normalised), pre_logits=True)
    found = predict_features(network, packed, torch.float32, "photos")
    torch.testing.assert_close(found, features, rtol=1e-3, atol=1e-3)


def test_batchnorm_is_folded_also_where_timm_joins_it_with_an_activation(
    network: nn.Module, images: torch.Tensor
) -> None:
    folded = fold_batchnorm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-3, atol=1e-3)


def test_last_half_is_what_runs_last(network: nn.Module, images: torch.Tensor) -> None:
    head, backbone = set_trainable(network, "last_half")
    tensors = len([*network.parameters()]) - len(head)
    assert 0.4 * tensors < len(backbone) <= (tensors + 1) / 2
    are_trained: list[bool] = []  # the layers, in the order in which they start
    for module in network.modules():
        if own := [*module.parameters(recurse=False)]:
            module.register_forward_pre_hook(lambda *_, of=own[0]: are_trained.append(of.requires_grad))
    with torch.inference_mode():
        network(images)
    assert are_trained == sorted(are_trained)
    assert {*are_trained} == {False, True}


def test_heat_maps_come_from_the_last_feature_map_or_the_last_tokens(network: nn.Module, images: torch.Tensor) -> None:
    maps = heat_maps(network, images, torch.zeros(2, dtype=int))
    is_vit = hasattr(network, "num_prefix_tokens")
    assert maps.shape == ((2, 4, 4) if is_vit else (2, 2, 2))  # patches of 16 pixels, or maps of a 32nd
    if is_vit:
        tokens = []
        hook = network.blocks[-1].norm1.register_forward_hook(lambda *args: tokens.append(args[2]))
        logits = network(images)
        hook.remove()
        [gradient] = torch.autograd.grad(logits[:, 0].sum(), tokens)
        weights = gradient[:, 1:].mean(dim=1, keepdim=True)
        expected = (weights * tokens[0][:, 1:]).sum(dim=2).relu().unflatten(1, (4, 4)).detach()
        expected = 255 * expected / expected.amax(dim=(1, 2), keepdim=True)
        assert (maps.double() - expected).abs().max() <= 1


def test_timms_resnet_is_torchvisions_and_loads_its_file(tmp_path: Path, images: torch.Tensor) -> None:
    path = str(write_weights(tmp_path, "resnet18"))
    ours, theirs = (build_network(name, path, 2, None, 0, seed=1).eval() for name in ("timm/resnet18", "resnet18"))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images))


def test_normalisation_is_that_of_the_weights() -> None:
    digits = "0123abcd"
    assert normalisation_of("resnet18", "timm/anything") == IMAGENET
    assert normalisation_of(VIT, "none") == HALVES
    assert normalisation_of(VIT, f"weights/any-{digits}.pth") == HALVES
    b0 = "timm/efficientnet_b0"
    assert normalisation_of(b0, f"{b0}.ra_in1k@{digits}") == IMAGENET == normalisation_of(b0, "none")
    other = f"{b0}.ra4_e3600_r224_in1k"  # pretrained differently
    assert normalisation_of(b0, f"{other}@{digits}") == HALVES
    assert normalisation_of(b0, f"~/weights/{other.removeprefix('timm/')}-{digits}.safetensors") == HALVES
    for wrong in (f"timm/resnet18.a1_in1k@{digits}", "timm/efficientnet_b0.a1_in1k"):
        with pytest.raises(UserError, match=rf"^params.yaml: networks\.{b0}\.weights is '{wrong}'; .* timm's {b0}\.ra"):
            normalisation_of(b0, wrong)


def test_mistakes_are_named_in_one_line(tmp_path: Path) -> None:
    for name, message in {
        "timm/resnet19": "timm has no such network; expected a name such as timm/resnet1",
        "timm/dla34": "its classifier is Conv2d; expected a network with one linear layer as its classifier",
    }.items():
        with pytest.raises(UserError, match=rf"^params.yaml: networks\.{name}: {message}"):
            build_network(name, "none", 2, None, 0, seed=1)
    with pytest.raises(UserError) as error:
        build_network("timm/resnet18", "IMAGENET1K_V1", 2, None, 0, seed=1)
    assert str(error.value).startswith(
        "params.yaml: networks.timm/resnet18.weights is 'IMAGENET1K_V1'; expected none, a file named resnet18-<first "
        "digits of its SHA-256>.pth or .safetensors, or timm's timm/resnet18.a1_in1k, "
    )
    path = save_weights(tmp_path, "vit", {"pos_embed": torch.zeros(1, 5, 192), "cls_token": torch.zeros(1, 1, 192)})
    with pytest.raises(UserError) as error:
        build_network(VIT, str(path), 2, None, 0, seed=1)
    assert str(error.value) == (
        f"networks.{VIT}.weights: {path} contains weights for a different network (missing: patch_embed.proj.weight, "
        "patch_embed.proj.bias, blocks.0.norm1.weight, ... (148 in all); of another shape: pos_embed [1, 5, 192] "
        "instead of [1, 197, 192]); expected those of timm's vit_tiny_patch16_224"
    )
    with pytest.raises(UserError, match=rf"^{VIT} cannot take images of 40x40 .* set prepare.image_size to (32|48),"):
        check_image_size(build_network(VIT, "none", 2, None, 0, seed=1), VIT, 40, "prepare.image_size")


def test_reject_names_the_size_that_a_network_can_take(tiny: Project) -> None:
    import timm

    network = timm.create_model(VIT.removeprefix("timm/"))
    tiny.params["networks"] = {VIT: {"weights": str(save_weights(tiny.root, "vit", network.state_dict()))}}
    tiny.params["prepare"]["image_size"] = 40
    tiny.params["train"]["image_size"] = None
    tiny.params["reject"]["false_rejection_rate"] = 0.1
    tiny.prepare()
    assert f"{VIT} cannot take images of 40x40 pixels" in error_line(tiny.run("reject.py"))


def test_names_on_disk_stay_different() -> None:
    import timm

    names = [*torchvision.models.list_models(module=torchvision.models), *(f"timm/{n}" for n in timm.list_models())]
    assert len({on_disk(name).replace("_", "-") for name in names}) == len(names)  # DVC's artifacts have no underscores


# ---- the stages ----


def run(project: Project, stage: ModuleType, *arguments: str) -> None:
    """Run a stage in this process, which has imported timm already."""
    project.write_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        patch.setattr("sys.argv", [f"{stage.__name__}.py", *arguments])
        stage.main()


@pytest.fixture(scope="module")
def trained(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which each network is trained and evaluated, and all are combined."""
    project = copy_of(prepared, tmp_path_factory.mktemp("timm"))
    project.params["networks"] = {name: {"weights": "none"} for name in NETWORKS}
    project.params["train"] |= {"layers": "last_half", "head_width": None}
    for name in NETWORKS:
        run(project, train, name)
    run(project, evaluate)
    run(project, ensemble)
    return project


def test_stages_train_evaluate_combine_and_explain_each_network(trained: Project) -> None:
    files = {on_disk(name) for name in NETWORKS}
    for folder in ("models/networks", "metrics/curves", "metrics/train", "metrics/networks"):
        assert {path.stem for path in (trained.root / folder).iterdir()} == files
    scores = pd.read_csv(trained.root / "metrics/scores/networks.csv")
    assert scores["network"].unique().tolist() == list(NETWORKS)
    assert trained.read_json("models/combination.json")["members"] == list(NETWORKS)
    assert load_file(trained.root / "metrics/heat_maps.safetensors").keys() == {"rows", *NETWORKS}


def test_evaluate_gives_the_logits_of_timms_own_network(trained: Project) -> None:
    """With the normalisation of its configuration, and position embeddings that are made for the images' size."""
    import timm

    tensors = load_file(trained.root / f"models/networks/{on_disk(VIT)}.safetensors")
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=2).eval()
    plain.load_state_dict({key.replace("head.0.", "head."): torch.from_numpy(of) for key, of in tensors.items()})
    plain.set_input_size(img_size=(32, 32))
    pixels = torch.from_numpy(trained.packed("test")[0]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        logits = plain((pixels - 0.5) / 0.5)
    found = predicted_by(trained)[VIT].to_numpy()
    assert found == pytest.approx(logits.softmax(dim=1).numpy(), abs=CLOSE)


def test_predict_gives_what_evaluate_gave_and_explains_it(trained: Project, tmp_path: Path) -> None:
    source, photos = trained.root / trained.params["prepare"]["source"], predicted_by(trained)
    output = trained.succeed("predict.py", str(source), "--csv", "--grid", str(tmp_path / "grid.png"), "--explain")
    (tmp_path / "answers.csv").write_text(output)
    answers = pd.read_csv(tmp_path / "answers.csv").set_index("photo")
    answers.index = answers.index.str.rpartition("/").get_level_values(2)
    for name, rows in photos.items():
        names = rows.index.str.rpartition("/").get_level_values(2)
        prefix = "" if name == "ensemble" else f"{name}_"
        found = answers.loc[names, [f"{prefix}probability_cat", f"{prefix}probability_dog"]].to_numpy()
        assert found == pytest.approx(rows.to_numpy(), abs=CLOSE), name


def test_reject_normalises_as_the_network_expects(trained: Project, tmp_path: Path) -> None:
    import timm

    project = copy_of(trained, tmp_path)
    for name in {*NETWORKS} - {VIT}:
        (project.root / f"models/networks/{on_disk(name)}.safetensors").unlink()
    state_dict = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    weights = save_weights(project.root, "vit_tiny_patch16_224", state_dict)
    project.params["networks"] = {VIT: {"weights": weights.name}}
    project.params["reject"]["false_rejection_rate"] = 0.5
    for stage in (reject, evaluate, ensemble):
        run(project, stage)
    table = pd.read_csv(project.root / "metrics/rejection.csv").query("split == 'validation'")
    output = project.succeed("predict.py", str(project.root / project.params["prepare"]["source"]), "--json")
    answers = {Path(row["photo"]).name: row["none_of_these"] for row in json.loads(output)}
    assert [answers[Path(photo).name] for photo in table["photo"]] == table["rejected"].tolist()


def test_training_resumes_with_the_same_bytes(
    tiny: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.params["networks"] = {VIT: {"weights": "none"}}
    tiny.params["train"] |= {"layers": "last_half", "epochs": 2}
    run(tiny, train, VIT)
    model = tiny.root / f"models/networks/{on_disk(VIT)}.safetensors"
    uninterrupted = model.read_bytes()
    run_epoch = training.Training.run_epoch

    def interrupted(run: training.Training, epoch: int) -> str:
        if epoch == 2:
            wait_for(model.with_suffix(".checkpoint").exists)  # it is written in the background
            raise KeyboardInterrupt
        return run_epoch(run, epoch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "run_epoch", interrupted)
        run(tiny, train, VIT)
    run(tiny, train, VIT)
    assert f"{VIT}: resuming after epoch 1" in capsys.readouterr().out
    assert model.read_bytes() == uninterrupted
