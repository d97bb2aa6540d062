"""Heat maps: what evaluate computes, and the pages that show them."""

import re
from pathlib import Path

from pipeline.networks.building import build_network
from pipeline.networks.explaining import heat_maps
from tests.support.photos import photo_bytes
from tests.support.projects import Repository, error_line

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


def test_a_heat_map_is_the_class_activation_map_of_the_predicted_class() -> None:
    """For a linear head after global pooling both are the same: Selvaraju et al. (2017), appendix A."""
    network = build_network("resnet18", "none", classes=3, head_width=None, dropout=0, seed=1).eval()
    images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    features = []
    hook = network.layer4.register_forward_hook(lambda module, inputs, output: features.append(output))
    with torch.no_grad():
        answers = network(images).argmax(1)
    hook.remove()
    maps = torch.einsum("nk,nkhw->nhw", network.fc[0].weight[answers], features[0]).clamp_min(0)
    expected = 255 * maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    found = heat_maps(network, images, answers)
    assert (found.shape, found.dtype) == ((4, 3, 3), torch.uint8)
    assert (found.double() - expected).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "side"), [("mobilenet_v2", 7), ("squeezenet1_1", 13), ("vgg11", 7), ("swin_t", 7), ("vit_b_32", 7)]
)
def test_other_networks_have_heat_maps_too(name: str, side: int) -> None:
    network = build_network(name, "none", classes=2, head_width=None, dropout=0, seed=1)
    assert heat_maps(network, torch.zeros(1, 3, 224, 224), torch.zeros(1, dtype=int)).shape == (1, side, side)


def test_a_network_without_a_last_feature_map_has_none() -> None:
    network = build_network("resnet18", "none", classes=2, head_width=None, dropout=0, seed=1)
    assert heat_maps(network, torch.zeros(1, 3, 1, 1), torch.zeros(1, dtype=int)) is None


def test_evaluate_covers_the_photos_that_the_report_shows(finished: Repository) -> None:
    maps = load_file(finished.root / "metrics/heat_maps.safetensors")
    table = pd.read_csv(finished.root / "metrics/predictions/ensemble.csv").query("split == 'test'").reset_index()
    assert maps.pop("rows").tolist() == list(range(len(table)))  # of twelve photos the report shows all
    assert {name: values.shape[0] for name, values in maps.items()} == {"resnet18": 12, "resnet34": 12}
    page = (finished.root / "metrics/report.html").read_text(encoding="utf-8")
    shown = re.findall(r'alt="Photo ([^,]+),', page)
    assert set(shown) == set(table["photo"])
    for network in maps:
        assert re.findall(rf'alt="Where {network} looked on ([^"]+)"', page) == shown


def test_predict_draws_where_the_networks_looked(finished: Repository, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(photo_bytes("cat", 3))
    (tmp_path / "broken.jpg").write_bytes(photo_bytes("cat", 3)[:99])
    sizes = {}
    for options in ([], ["--explain"]):
        image = tmp_path / f"answers{len(options)}.png"
        done = finished.run(
            "predict.py", str(tmp_path / "cat.jpg"), str(tmp_path / "broken.jpg"), "--grid", str(image), *options
        )
        assert error_line(done) == "1 of 2 photos could not be read"
        with Image.open(image) as opened:
            sizes[image.stem] = opened.size
            pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert sizes["answers1"][1] == sizes["answers0"][1] + 80  # two maps side by side below each photo
    maps = pixels[172:252, 12:172]
    assert (maps[..., 0] - maps[..., 2] > 60).sum() > 100  # part of them is coloured
    assert error_line(finished.run("predict.py", "a.jpg", "--explain")) == (
        "--explain needs --grid FILE, which it draws into"
    )
