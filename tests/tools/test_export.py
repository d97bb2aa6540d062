"""tools/export.py: three runtimes and the model card give the same answers as the pipeline."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from pipeline.export.graphs import ImageToProbabilities, write_onnx
from pipeline.networks.building import build_network
from pipeline.networks.folding import fold_batchnorm
from pipeline.networks.models import load_model, save_model
from pipeline.networks.normalisation import IMAGENET, Normalisation
from pipeline.scores.combining import Combination
from tests.support.photos import FLOWERS
from tests.support.predictions import CLOSE, predicted_by
from tests.support.projects import NEEDS_TIMM, Project, Repository, copy_of

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow

NETWORKS = ("resnet18", "resnet34")


def run_onnxruntime(file: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return [session.run(["probabilities"], {"image": image})[0] for image in images]


def run_openvino(file: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    import openvino

    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [model([image])["probabilities"].copy() for image in images]


def run_opencv(file: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    import cv2

    network, answers = cv2.dnn.readNetFromONNX(str(file)), []
    for image in images:
        network.setInput(image)
        answers.append(network.forward().copy())
    return answers


def test_export_gives_every_runtime_and_the_model_card_the_answers_of_the_pipeline(
    flowers: Project, tmp_path: Path
) -> None:
    """Of three classes, with cropped photos, test-time flip and fitted weights."""
    project = copy_of(flowers, tmp_path)
    project.params["ensemble"]["method"] = "fitted_weights"
    project.succeed("ensemble.py")
    check_export(project, list(FLOWERS))


def test_export_of_one_network_has_no_ensemble_that_repeats_it(repository: Repository) -> None:
    """Of two classes, with squeezed photos."""
    project = repository
    del project.params["networks"]["resnet34"]
    (project.root / "models/networks/resnet34.safetensors").unlink()
    (project.root / "export").mkdir()
    (project.root / "export/ensemble.onnx").touch()  # of an earlier export
    project.succeed("evaluate.py")
    project.succeed("ensemble.py")
    check_export(project, ["cat", "dog"], names=("resnet18",))
    card = (project.root / "export/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "ensemble" not in card
    assert "There are fewer than 10 test photos of" in card  # 6 of each


def check_export(project: Project, classes: list[str], names: tuple[str, ...] = (*NETWORKS, "ensemble")) -> None:
    """Export the project, and compare the runtimes' answers and the model card with what its stages wrote.

    `names` are the graphs that it should export; the last one is what the model card describes.
    """
    project.succeed("export.py")
    exported = project.root / "export"
    graphs = {f"{name}.onnx" for name in names}
    assert {path.name for path in exported.iterdir()} == graphs | {"example.png", "MODEL_CARD.md"}

    photos = [row["photo"] for row in project.split_table() if row["split"] == "test"]
    images = [image[np.newaxis] for image in project.packed("test")[0].transpose(0, 3, 1, 2).astype("float32")]
    predicted = predicted_by(project)
    for name in names:
        expected = predicted[name]
        assert list(expected) == classes_in(exported / f"{name}.onnx") == classes
        for run in (run_onnxruntime, run_openvino, run_opencv):
            answers = np.concatenate(run(exported / f"{name}.onnx", images))
            assert answers == pytest.approx(expected.loc[photos].to_numpy(), abs=CLOSE), (name, run)
            assert answers.sum(axis=1) == pytest.approx(1)

    card = (exported / "MODEL_CARD.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, check=True)
    [(label, probability)] = re.findall(rf"\| {names[-1]} \| (\D+) \| (\d[\d.]+) \|", card)
    *found_label, found_probability = done.stdout.split()
    assert " ".join(found_label) == label
    assert float(found_probability) == pytest.approx(float(probability), abs=1e-4)
    scores = pd.read_csv(project.root / "metrics/scores/ensemble.csv").set_index("split").loc["test"]
    assert f"| {names[-1]} | {scores['correct']} of {scores['total']} ({scores['accuracy']:.4f}) |" in card
    assert "".join(f" recall of {name} |" for name in classes) in card
    for runtime in ("onnxruntime", "openvino"):
        assert f" {version(runtime)} |" in card


@pytest.mark.parametrize("method", ["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"])
@pytest.mark.parametrize("count", [2, 120])
def test_export_combines_any_number_of_classes_as_the_pipeline_does(count: int, method: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, count)).eval() for _ in range(3)]
    classes = [f"class {number}" for number in range(count)]
    weights = {"first": 0.7, "second": 1.2, "third": -0.1}
    combination = Combination(method, weights, dict(zip(classes, np.linspace(-1, 1, count).tolist(), strict=True)))
    file = tmp_path / "ensemble.onnx"
    write_onnx(ImageToProbabilities(networks, [IMAGENET] * 3, combination, size=8), classes, file)
    assert classes_in(file) == classes

    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        expected = combination([network(IMAGENET(pixels)).double().numpy() for network in networks])
    images = [image[np.newaxis] for image in pixels.numpy().astype("float32")]
    for run in (run_onnxruntime, run_openvino, run_opencv):
        assert np.concatenate(run(file, images)) == pytest.approx(expected, abs=1e-5), run


@NEEDS_TIMM
def test_export_normalises_each_of_timms_networks_as_it_expects(tmp_path: Path) -> None:
    """In one graph, and of a transformer for images of another size than it was made for."""
    from pipeline.export.graphs import ImageToProbabilities, write_onnx
    from pipeline.scores.combining import Combination

    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    networks, normalisations, logits = [], [], []
    for name, normalisation in ("timm/test_vit", Normalisation((0.5,) * 3, (0.5,) * 3)), ("timm/test_resnet", IMAGENET):
        network = build_network(name, "none", 2, None, 0, seed=1).eval()
        description = {"network": name, "head_width": None, "dropout": 0, "classes": ["cat", "dog"], "image_size": 64}
        save_model(tmp_path / "model.safetensors", network.state_dict(), description)
        networks.append(fold_batchnorm(load_model(tmp_path / "model.safetensors")[0]))
        normalisations.append(normalisation)
        with torch.inference_mode():
            logits.append(network(normalisation(pixels)).double().numpy())
    combination, file = Combination("mean_logits"), tmp_path / "ensemble.onnx"
    write_onnx(ImageToProbabilities(networks, normalisations, combination, size=64), ["cat", "dog"], file)
    images = [image[np.newaxis] for image in pixels.numpy().astype("float32")]
    for run in (run_onnxruntime, run_openvino):
        assert np.concatenate(run(file, images)) == pytest.approx(combination(logits), abs=1e-5), run


def classes_in(file: Path) -> list[str]:
    """The classes that a graph's metadata names."""
    properties = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert list(properties) == ["classes"]
    return json.loads(properties["classes"])
