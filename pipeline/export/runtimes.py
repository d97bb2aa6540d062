"""Run ONNX graphs in other runtimes, and compare their answers with the pipeline's."""

from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import UserError

import numpy as np
import onnxruntime
import openvino
from tqdm import tqdm

LARGEST_DIFFERENCE = 0.001  # allowed between the probabilities of a runtime and the pipeline

Run = Callable[[np.ndarray], np.ndarray]  # maps an image, as the graphs take it, to probabilities [1, classes]


def compare(name: str, file: Path, pixels: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest difference from the `expected` probabilities [N, classes], by runtime and version.

    Raises UserError if it is larger than LARGEST_DIFFERENCE.
    """
    runs = {f"onnxruntime {onnxruntime.__version__}": run_onnxruntime(file)}
    runs[f"OpenVINO {openvino.__version__.partition('-')[0]}"] = run_openvino(file)
    differences = {}
    for runtime, run in runs.items():
        images = pixels.transpose(0, 3, 1, 2)[:, np.newaxis].astype("float32")
        found = [run(image).copy() for image in tqdm(images, desc=f"{name}, {runtime}", disable=None, leave=False)]
        differences[runtime] = float(np.abs(np.concatenate(found) - expected).max())
        if not differences[runtime] <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{name}: {runtime} and the pipeline differ by {differences[runtime]:.2g} in a probability; expected "
                f"at most {LARGEST_DIFFERENCE}; nothing was exported"
            )
    return differences


def run_onnxruntime(file: Path) -> Run:
    session = onnxruntime.InferenceSession(file)
    return lambda image: np.asarray(session.run(["probabilities"], {"image": image})[0])


def run_openvino(file: Path) -> Run:
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: model([image])["probabilities"]
