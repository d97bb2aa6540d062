"""Graphs quantised to int8, and what that costs: their answers on validation beside those of the networks in float."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.paths import NETWORK_PREDICTIONS, packed_split
from pipeline.export.runtimes import answers, as_inputs, run_onnxruntime
from pipeline.inference.ensemble import Ensemble
from pipeline.networks.dataset import PackedSplit
from pipeline.scores.predictions import read_logits, select_split
from pipeline.scores.scoring import ENSEMBLE, predicted_labels

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

CALIBRATED_ON = 100  # train photos, at least
TIMED = 10  # images
QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool", "ReduceMean"]  # the rest stays float


@dataclass(frozen=True)
class Cost:
    """The answers of a graph on validation, in float and in int8."""

    photos: int
    correct: int  # in float
    int8_correct: int
    changed: int  # photos with another answer in int8
    speed: float  # images per second, as a multiple of those in float

    def __str__(self) -> str:
        found = f"{self.int8_correct:,} ({self.int8_correct / self.photos:.4f}) in int8"
        in_float = f"{self.correct:,} ({self.correct / self.photos:.4f}) in float"
        return (
            f"{found} and {in_float}, of {self.photos:,}; {self.changed:,} answers differ; "
            f"{self.speed:.1f} times as fast"
        )


class Images(CalibrationDataReader):
    """Hands the images that ranges are measured on to onnxruntime."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._inputs = as_inputs(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyrefly: ignore[bad-override]  # None: there are no more
        image = next(self._inputs, None)
        return None if image is None else {"image": image}


def quantise(file: Path, train: PackedSplit, target: Path) -> None:
    """Write the graph in `file` to `target`, with weights and activations in int8.

    The range of each activation is that on photos in train. Weights have 7 bits, because sums of two products overflow
    on CPUs without VNNI otherwise, which gives wrong answers.
    """
    pixels = train.sample(CALIBRATED_ON).pixels.numpy()
    logging.disable(logging.WARNING)  # its advice on preparing the graph, which is done
    quantize_static(
        file,
        target,
        Images(pixels),
        op_types_to_quantize=QUANTISED,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
    )
    logging.disable(logging.NOTSET)


def float_answers(ensemble: Ensemble, validation: PackedSplit) -> dict[str, np.ndarray]:
    """The answers of each network and the ensemble on validation, as `evaluate` wrote them: class numbers, int [N].

    Raises UserError if these are for other photos.
    """
    predictions = select_split(read_logits(), "validation")
    networks = list(ensemble.networks)
    if list(predictions.logits) != networks or not np.array_equal(predictions.labels, validation.labels.numpy()):
        raise UserError(f"{NETWORK_PREDICTIONS} is not for {packed_split('validation')}; run `dvc repro` to fix this")
    combined = ensemble.combination(list(predictions.logits.values()))
    return {name: predicted_labels(values) for name, values in {**predictions.logits, ENSEMBLE: combined}.items()}


def measure(name: str, file: Path, int8_file: Path, ensemble: Ensemble, validation: PackedSplit) -> Cost:
    """What int8 costs the graph of a network, or of the ensemble."""
    labels, pixels = validation.labels.numpy(), validation.pixels.numpy()
    expected = float_answers(ensemble, validation)[name]
    run, run_int8 = run_onnxruntime(file), run_onnxruntime(int8_file)
    found = predicted_labels(answers(run_int8, pixels, f"{name}, int8 on validation"))
    seconds = [[], []]
    for image in as_inputs(pixels[:TIMED]):
        for timed, of in zip((run, run_int8), seconds, strict=True):  # in turn, so that other programs slow both
            start = time.perf_counter()
            timed(image)
            of.append(time.perf_counter() - start)
    return Cost(
        photos=len(labels),
        correct=int((expected == labels).sum()),
        int8_correct=int((found == labels).sum()),
        changed=int((found != expected).sum()),
        speed=float(np.median(seconds[0]) / np.median(seconds[1])),
    )
