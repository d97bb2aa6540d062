"""tools/export.py: three runtimes and the model card give the same answers as the pipeline."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from predictions import CLOSE, predicted_by
from projects import Repository

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


@pytest.mark.parametrize(
    ("method", "params", "scripts"),
    [
        ("fitted_weights", {}, ()),
        (
            "majority_vote",
            {"prepare": {"resize": "center_crop"}, "evaluate": {"test_time_flip": True}},
            ("prepare.py", "train.py resnet18", "train.py resnet34", "evaluate.py"),
        ),
    ],
)
def test_export_gives_every_runtime_and_the_model_card_the_answers_of_the_pipeline(
    repository: Repository, method: str, params: dict, scripts: tuple[str, ...]
) -> None:
    for key, value in {"ensemble": {"method": method}, **params}.items():
        repository.params[key] = repository.params[key] | value if isinstance(value, dict) else value
    for script in (*scripts, "ensemble.py", "export.py"):
        repository.succeed(*script.split())
    exported = repository.root / "export"
    graphs = {f"{name}.onnx" for name in (*NETWORKS, "ensemble")}
    assert {path.name for path in exported.iterdir()} == graphs | {"example.png", "MODEL_CARD.md"}

    expected = predicted_by(repository)
    photos = [row["photo"] for row in repository.split_table() if row["split"] == "test"]
    images = [image[np.newaxis] for image in repository.packed("test")[0].transpose(0, 3, 1, 2).astype("float32")]
    for name in expected:
        for run in (run_onnxruntime, run_openvino, run_opencv):
            answers = np.concatenate(run(exported / f"{name}.onnx", images))
            assert answers[:, 1] == pytest.approx(expected.loc[photos, name].to_numpy(), abs=CLOSE), (name, run)
            assert answers.sum(axis=1) == pytest.approx(1)

    card = (exported / "MODEL_CARD.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(dog)"], cwd=exported, capture_output=True, text=True, check=True
    )
    [answer] = re.findall(r"\| ensemble \| ([\d.]+) \|", card)
    assert float(done.stdout) == pytest.approx(float(answer), abs=1e-4)
    scores = repository.read_json("metrics/ensemble.json")
    assert f"| ensemble | {scores['correct']} of {scores['total']} ({scores['accuracy']:.4f}) |" in card
    for runtime in ("onnxruntime", "openvino"):
        assert f" {version(runtime)} |" in card
