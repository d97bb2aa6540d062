"""Building, saving and loading networks, and reading pretrained weights from files."""

import hashlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.networks.building import Head, build_network
from pipeline.networks.folding import fold_batchnorm, fold_frozen_batchnorm
from pipeline.networks.freezing import set_trainable, set_training
from pipeline.networks.models import load_model, save_model
from tests.support.projects import REPOSITORY
from tests.support.weight_files import name_by_hash, save_weights, write_weights

import pytest
import torch
import torchvision
from safetensors.torch import save as save_safetensors


@pytest.mark.parametrize("name", ["resnet34", "mobilenet_v2", "vgg11_bn", "squeezenet1_1", "googlenet", "densenet121"])
def test_build_network_gives_any_classification_network_a_head_for_the_classes(name: str) -> None:
    network = build_network(name, "none", classes=3, head_width=512, dropout=0.5, seed=1).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    [head] = [module for module in network.modules() if isinstance(module, Head)]
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Dropout", "Linear"]


def test_fold_batchnorm_changes_neither_the_logits_nor_the_network() -> None:
    torch.manual_seed(1)
    network = build_network("resnet18", "none", 2, 16, 0.5, seed=1)
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


class OneSize(torch.nn.Module):
    """A network that takes images of one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.batchnorm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
        self.position = torch.nn.Parameter(torch.zeros(1, 4, 32, 32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.batchnorm(self.convolution(images)) + self.position


def test_a_folded_network_prints_nothing_when_it_fails(capsys: pytest.CaptureFixture) -> None:
    folded = fold_batchnorm(OneSize())
    assert isinstance(folded, torch.fx.GraphModule)
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        folded(torch.zeros(1, 3, 64, 64))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_fold_frozen_batchnorm_trains_the_same_weights(name: str) -> None:
    trained = []
    for fold in (False, True):
        network = build_network(name, "none", 2, 0, 0.5, seed=1)
        head, backbone = set_trainable(network, "last_half")
        set_training(network, "last_half", "fixed")
        folded = fold_frozen_batchnorm(network) if fold else network
        optimizer = torch.optim.SGD(head + backbone, lr=0.1)
        layers = [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        if fold:  # only the trained ones are left
            assert layers == [layer for layer in layers if layer.weight.requires_grad]
            assert len(layers) < sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
        torch.manual_seed(1)  # for the photos, dropout and stochastic depth
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(folded(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 0, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained.append(network.state_dict())
    before, after = trained
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)


def test_fold_frozen_batchnorm_keeps_a_network_without_frozen_layers_or_batchnorm() -> None:
    for name in ("resnet18", "squeezenet1_1"):
        network = build_network(name, "none", 2, 0, 0.5, seed=1)
        assert fold_frozen_batchnorm(network) is network


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torchvision, on GoogLeNet's initial weights
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mnasnet0_5"])
def test_load_model_gives_a_network_with_the_same_logits_as_the_saved_one(tmp_path: Path, name: str) -> None:
    """GoogLeNet rescales its input, by an attribute that is in no state_dict; MNASNet expects a version there."""
    network = build_network(name, str(write_weights(tmp_path, name)), 5, 512, 0.5, seed=1).eval()
    description = {"network": name, "head_width": 512, "dropout": 0.5, "classes": ["ant", "bee", "cow", "doe", "elk"]}
    save_model(tmp_path / "model.safetensors", network.state_dict(), description)
    loaded, loaded_description = load_model(tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(1))
    assert torch.equal(loaded.eval()(images), network(images))
    assert loaded_description == description
    assert getattr(network, "transform_input", True) is True


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121", "efficientnet_b0", "swin_t"])
def test_set_trainable_splits_no_layer_for_last_half_and_freezes_all_below_it(name: str) -> None:
    network = build_network(name, "none", classes=2, head_width=512, dropout=0.5, seed=1)
    head, backbone = set_trainable(network, "last_half")
    set_training(network, "last_half", "updated")
    tensors = len(list(network.parameters())) - len(head)
    assert 0.4 * tensors < len(backbone) <= (tensors + 1) / 2
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


@pytest.mark.slow
def test_build_network_loads_published_files_in_older_spellings(tmp_path: Path) -> None:
    """Some lack BatchNorm's num_batches_tracked; DenseNet's have norm.1 where the layers are called norm1."""
    for name, spell in {
        "resnet18": lambda key: None if key.endswith("num_batches_tracked") else key,
        "densenet121": lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key),
    }.items():
        state_dict = torch.load(write_weights(tmp_path, name), weights_only=True)
        older = {spell(key): tensor for key, tensor in state_dict.items() if spell(key)}
        assert older.keys() != state_dict.keys()
        loaded = build_network(name, str(save_weights(tmp_path, name, older)), 2, 512, 0.5, seed=1).state_dict()
        backbone = [key for key in state_dict if key in loaded and not key.endswith("num_batches_tracked")]
        assert len(backbone) > 90
        assert all(torch.equal(loaded[key], state_dict[key]) for key in backbone)


@pytest.mark.slow
def test_build_network_takes_weights_only_if_the_files_name_and_content_agree(tmp_path: Path) -> None:
    path = write_weights(tmp_path, "resnet18")
    network = build_network("resnet18", str(path), 2, 512, 0.5, seed=1)
    assert torch.equal(network.state_dict()["conv1.weight"], torch.load(path, weights_only=True)["conv1.weight"])

    with pytest.raises(UserError, match=r"networks\.resnet34\.weights: .* contains weights for a different network"):
        build_network("resnet34", str(path), 2, 512, 0.5, seed=1)
    with pytest.raises(
        UserError, match=r"networks\.mobilenet_v2\.weights: .* contains weights for a different network"
    ):
        build_network("mobilenet_v2", str(path), 2, 512, 0.5, seed=1)
    larger = write_weights(tmp_path, "resnet34")  # everything that resnet18 has, and more
    with pytest.raises(UserError, match=r" for a different network \(unexpected: layer1\.2\S+, .* \(96 in all\)\)"):
        build_network("resnet18", str(larger), 2, 512, 0.5, seed=1)
    reshaped = torch.load(path, weights_only=True)
    reshaped["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    del reshaped["bn1.bias"]
    other = save_weights(tmp_path, "resnet18", reshaped)
    with pytest.raises(UserError) as error:
        build_network("resnet18", str(other), 2, 512, 0.5, seed=1)
    assert str(error.value) == (
        f"networks.resnet18.weights: {other} contains weights for a different network (missing: bn1.bias; of another "
        "shape: conv1.weight [64, 1, 7, 7] instead of [64, 3, 7, 7]); expected those of torchvision's resnet18"
    )
    wrong = path.rename(tmp_path / "resnet18-00000000.pth")
    with pytest.raises(UserError, match=r"its SHA-256 starts with [0-9a-f]{8}, its name says 00000000"):
        build_network("resnet18", str(wrong), 2, 512, 0.5, seed=1)
    unnamed = wrong.rename(tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=rf"; rename it to {path.name}$"):
        build_network("resnet18", str(unnamed), 2, 512, 0.5, seed=1)
    with pytest.raises(UserError, match="does not exist; check the path"):
        build_network("resnet18", str(tmp_path / "resnet18-0123abcd.pth"), 2, 512, 0.5, seed=1)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_build_network_finds_the_weights_of_wrapped_networks_and_in_checkpoints(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
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
    built = build_network("squeezenet1_1", str(path), 2, 512, 0.5, seed=1).state_dict()
    backbone = [name for name in plain if not name.startswith("classifier.")]
    assert all(torch.equal(built[name], plain[name]) for name in backbone)


class Harmful:
    """An object whose unpickling calls a function, here one that creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_build_network_runs_no_code_from_a_file_of_weights(tmp_path: Path) -> None:
    path = save_weights(tmp_path, "resnet18", {"conv1.weight": Harmful(tmp_path / "harm")})
    with pytest.raises(UserError, match="cannot be loaded without running code from the file"):
        build_network("resnet18", str(path), 2, 512, 0.5, seed=1)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 but no zip", pickle.dumps({"conv1.weight": 1})])
def test_build_network_refuses_files_without_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^networks\.resnet18\.weights: .*resnet18-[0-9a-f]{8}\.pth ") as error:
        build_network("resnet18", str(path), 2, 512, 0.5, seed=1)
    assert "\n" not in str(error.value)


def test_build_network_refuses_names_that_torchvision_does_not_know() -> None:
    with pytest.raises(
        UserError, match=r"networks\.resnet19: torchvision has no such network; expected a name such as resnet1"
    ):
        build_network("resnet19", "none", 2, 512, 0.5, seed=1)
    for weights in ("IMAGENET", "DEFAULT"):  # torchvision may change the meaning of DEFAULT
        with pytest.raises(UserError, match=rf"networks\.resnet18\.weights is '{weights}'.*IMAGENET1K_V1"):
            build_network("resnet18", weights, 2, 512, 0.5, seed=1)


TRAINING = """
import sys
sys.path.insert(0, sys.argv[1])
import pipeline.networks
import torch
for kind in torch.optim.Adam, torch.optim.SGD:
    layer = torch.nn.Linear(3, 2)
    optimizer = kind(layer.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    with torch.no_grad():
        layer.weight.fill_(1), layer.bias.fill_(0)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        schedule.step()
    print(kind.__name__, "torch._dynamo" in sys.modules, layer.weight.flatten().tolist())
"""


@pytest.mark.slow
def test_training_does_not_import_the_compiler_and_computes_the_same() -> None:
    without = TRAINING.replace("import pipeline.networks\n", "")
    ours, plain = (
        subprocess.run([sys.executable, "-c", code, REPOSITORY], capture_output=True, text=True, check=True)
        for code in (TRAINING, without)
    )
    assert re.findall(r"^(\w+) (False|True)", ours.stdout, re.MULTILINE) == [("Adam", "False"), ("SGD", "False")]
    assert plain.stdout == ours.stdout.replace("False", "True")
