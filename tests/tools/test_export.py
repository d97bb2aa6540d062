"""tools/export.py: three runtimes and the model card give the same answers as the pipeline."""

import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from pipeline.export.graphs import Graph, ImageToProbabilities, write_onnx
from pipeline.networks.building import build_network
from pipeline.networks.folding import fold_batchnorm
from pipeline.networks.models import load_model, save_model
from pipeline.networks.normalisation import IMAGENET, Normalisation
from pipeline.pages.rendering import render
from pipeline.photos.decoding import CENTER_CROP_SHARE, decode
from pipeline.scores.combining import Combination
from tests.support.odd_photos import odd_photos
from tests.support.photos import FLOWERS, write_folder
from tests.support.predictions import CLOSE, predicted_by
from tests.support.projects import NEEDS_TIMM, Project, Repository, copy_of
from tests.support.weight_files import write_weights

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
    (project.root / "export").mkdir()
    (project.root / "export/resnet18-int8.onnx").touch()  # of an earlier export
    check_export(project, list(FLOWERS))


def test_export_of_one_network_has_no_ensemble_that_repeats_it(repository: Repository, tmp_path: Path) -> None:
    """Of two classes, with stretched photos, and in int8; some photos show none of the classes."""
    project = repository
    del project.params["networks"]["resnet34"]
    (project.root / "models/networks/resnet34.safetensors").unlink()
    (project.root / "export").mkdir()
    (project.root / "export/ensemble.onnx").touch()  # of an earlier export
    project.succeed("evaluate.py")
    project.succeed("ensemble.py")
    project.params["networks"]["resnet18"]["weights"] = str(write_weights(tmp_path, "resnet18"))
    project.params["networks"]["resnet18"] |= {"lr": 0.5, "train": {"epochs": 7}}
    project.params["reject"]["false_rejection_rate"] = 0.5
    project.succeed("reject.py")
    printed = check_export(project, ["cat", "dog"], "--int8", names=("resnet18",))
    check_int8(project, printed)
    card = (project.root / "export/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "ensemble" not in card
    assert "\nExceptions for resnet18: lr 0.5, epochs 7.\n" in card
    assert "There are fewer than 10 test photos of" in card  # 6 of each


def check_export(
    project: Project, classes: list[str], *arguments: str, names: tuple[str, ...] = (*NETWORKS, "ensemble")
) -> str:
    """Export the project, and compare the answers of runtimes, script and model card with those of the pipeline.

    `names` are the graphs that it should export; the last one is what the model card describes. Returns what it prints.
    """
    project.params["precision"] = "float32"
    printed = project.succeed("export.py", *arguments)
    exported = project.root / "export"
    graphs = {f"{name}{suffix}.onnx" for name in names for suffix in ("", "-int8")[: 1 + len(arguments)]}
    if project.params["reject"]["false_rejection_rate"]:
        graphs.add("rejection.onnx")
    assert {path.name for path in exported.iterdir()} == graphs | {"classify.py", "example.png", "MODEL_CARD.md"}

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
    [(label, probability)] = re.findall(rf"\| {names[-1]} \| (\D+) \| (\d[\d.]+) \|", card)
    found = check_script(project, f"{names[-1]}.onnx")
    assert found["export/example.png"][0].removeprefix("none of these (").removesuffix(")") == label
    assert found["export/example.png"][1] == pytest.approx(float(probability), abs=1e-4)
    scores = pd.read_csv(project.root / "metrics/scores/ensemble.csv").set_index("split").loc["test"]
    assert f"| {names[-1]} | {scores['correct']} of {scores['total']} ({scores['accuracy']:.4f}) |" in card
    assert "".join(f" recall of {name} |" for name in classes) in card
    for runtime in ("onnxruntime", "openvino"):
        assert f" {version(runtime)} |" in card
    return printed


def check_script(project: Project, graph: str) -> dict[str, tuple[str, float]]:
    """Classify odd photos with classify.py, which must agree with predict; return its answers by photo."""
    write_folder(project.root / "odd", odd_photos())
    paths = ["export/example.png", *sorted(f"odd/{path.name}" for path in (project.root / "odd").iterdir())]
    command = [sys.executable, "-I", "export/classify.py", f"export/{graph}", *paths]  # -I: without this project
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=True)
    rows = (line.split("\t") for line in done.stdout.splitlines())
    found = {path: (label, float(probability)) for path, label, probability in rows}
    expected = {
        answer["photo"]: (
            f"none of these ({answer['label']})" if answer.get("none_of_these") else answer["label"],
            pytest.approx(answer["probabilities"][answer["label"]], abs=1e-4),
        )
        for answer in json.loads(project.succeed("predict.py", "--json", *paths))
    }
    assert found == expected
    return found


def check_int8(project: Project, printed: str) -> None:
    """What is printed and written of resnet18's accuracy in int8 is what its graph has on validation."""
    pixels, labels, _ = project.packed("validation")
    images = [image[np.newaxis] for image in pixels.transpose(0, 3, 1, 2).astype("float32")]
    answers = {}
    for name in ("resnet18", "resnet18-int8"):
        answers[name] = np.concatenate(run_onnxruntime(project.root / f"export/{name}.onnx", images))
    in_float, int8 = answers.values()
    assert 0 < np.abs(in_float - int8).max() < 0.2
    correct, int8_correct = ((values.argmax(axis=1) == labels).sum() for values in (in_float, int8))
    changed = (in_float.argmax(axis=1) != int8.argmax(axis=1)).sum()
    counts = f"({correct / len(labels):.4f}) in float, of {len(labels)}; {changed} answers differ; "
    assert f"  resnet18: {int8_correct} ({int8_correct / len(labels):.4f}) in int8 and {correct} {counts}" in printed
    card = (project.root / "export/MODEL_CARD.md").read_text(encoding="utf-8")
    assert re.search(rf"\| resnet18 \| {correct} of 12 .* \| {int8_correct} of 12 .* \| {changed} \|", card)
    assert (project.root / "export/resnet18-int8.onnx").stat().st_size < 0.3 * (
        project.root / "export/resnet18.onnx"
    ).stat().st_size


class Recorder:
    """Stands in for an onnxruntime session: records the images that it is given."""

    images: ClassVar[list[np.ndarray]] = []

    def __init__(self, path: str) -> None:
        self.is_rejection = path.endswith("rejection.onnx")

    def get_modelmeta(self) -> SimpleNamespace:
        return SimpleNamespace(custom_metadata_map={"classes": '["cat", "dog"]'})

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.is_rejection:
            return [np.array([[0.5]])]
        self.images.append(inputs["image"])
        return [np.array([[0.25, 0.75]])]


@pytest.mark.parametrize("threshold", [None, 0.625])
@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
def test_the_exported_script_has_30_lines_and_sees_the_pixels_that_the_pipeline_does(
    resize: str, threshold: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    size, share = 48, CENTER_CROP_SHARE if resize == "center_crop" else None
    script = render("classify.py.jinja", size=size, crop_share=share, threshold=threshold)
    assert len(script.splitlines()) <= 30
    (tmp_path / "classify.py").write_text(script)
    photos = odd_photos()
    write_folder(tmp_path, photos)
    monkeypatch.setattr("onnxruntime.InferenceSession", Recorder)
    monkeypatch.setattr(Recorder, "images", [])
    monkeypatch.setattr("sys.argv", ["classify.py", "ensemble.onnx", *(str(tmp_path / name) for name in photos)])
    runpy.run_path(str(tmp_path / "classify.py"))
    for (name, content), image in zip(photos.items(), Recorder.images, strict=True):
        assert np.array_equal(image[0].transpose(1, 2, 0), decode(content, size, resize)), name
    label = "dog" if threshold is None else "none of these (dog)"
    assert capsys.readouterr().out == "".join(f"{tmp_path / name}\t{label}\t0.7500\n" for name in photos)


@pytest.mark.parametrize("method", ["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"])
@pytest.mark.parametrize("count", [2, 120])
def test_export_combines_any_number_of_classes_as_the_pipeline_does(count: int, method: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, count)).eval() for _ in range(3)]
    classes = [f"class {number}" for number in range(count)]
    weights = {"first": 0.7, "second": 1.2, "third": -0.1}
    combination = Combination(method, weights, dict(zip(classes, np.linspace(-1, 1, count).tolist(), strict=True)))
    file = tmp_path / "ensemble.onnx"
    module = ImageToProbabilities(networks, [IMAGENET] * 3, combination, size=8)
    write_onnx(Graph(module, "probabilities", {"classes": classes}), 8, file)
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
    module = ImageToProbabilities(networks, normalisations, combination, size=64)
    write_onnx(Graph(module, "probabilities", {"classes": ["cat", "dog"]}), 64, file)
    images = [image[np.newaxis] for image in pixels.numpy().astype("float32")]
    for run in (run_onnxruntime, run_openvino):
        assert np.concatenate(run(file, images)) == pytest.approx(combination(logits), abs=1e-5), run


def classes_in(file: Path) -> list[str]:
    """The classes that a graph's metadata names."""
    properties = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert list(properties) == ["classes"]
    return json.loads(properties["classes"])
