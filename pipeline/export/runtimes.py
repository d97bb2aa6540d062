"""Run ONNX graphs in other runtimes, and compare their answers with the pipeline's."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import UserError

import numpy as np
import onnxruntime
import openvino
from tqdm import tqdm

LARGEST_DIFFERENCE = 0.001  # allowed between the answers of a runtime and the pipeline

Run = Callable[[np.ndarray], np.ndarray]  # maps an image, as the graphs take it, to the graph's answer


def compare(name: str, file: Path, pixels: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest difference from the `expected` answers [N, ...], by runtime and version.

    `pixels` are uint8 [N, size, size, 3]. Raises UserError if it is larger than LARGEST_DIFFERENCE.
    """
    runs = {f"onnxruntime {onnxruntime.__version__}": run_onnxruntime(file)}
    runs[f"OpenVINO {openvino.__version__.partition('-')[0]}"] = run_openvino(file)
    differences = {}
    for runtime, run in runs.items():
        differences[runtime] = float(np.abs(answers(run, pixels, f"{name}, {runtime}") - expected).max())
        if not differences[runtime] <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{name}: {runtime} and the pipeline differ by {differences[runtime]:.2g}; expected at most "
                f"{LARGEST_DIFFERENCE}; nothing was exported"
            )
    return differences


def answers(run: Run, pixels: np.ndarray, title: str) -> np.ndarray:
    """The answers to uint8 images [N, size, size, 3], one after the other; `title` labels the progress bar."""
    rows = tqdm(pixels, desc=title, unit=" images", disable=None, leave=False)
    return np.concatenate([run(image).copy() for image in as_inputs(rows)])


def as_inputs(pixels: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """uint8 images [size, size, 3], each as the graphs take it: float32 [1, 3, size, size]."""
    return (image.transpose(2, 0, 1)[np.newaxis].astype("float32") for image in pixels)


def run_onnxruntime(file: Path) -> Run:
    session = onnxruntime.InferenceSession(file)
    return lambda image: np.asarray(session.run(None, {"image": image})[0])


def run_openvino(file: Path) -> Run:
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: model([image])[0]
