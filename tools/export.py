"""Export the trained models to ONNX: each network, and the ensemble as one graph, with a model card.

Reads models/, metrics/ and data/prepared/; writes export/. A graph takes one image, already scaled, and returns the
probability of each class; the classes' names are in its metadata. The model card has the Python code that scales a
photo, and the expected answer for example.png, a synthetic photo. An ensemble that only repeats a single network has no
graph of its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import io
import json
import logging
import warnings
from collections.abc import Callable

from pipeline.core.all_params import Params, without_folders
from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, read_json
from pipeline.core.params import as_written
from pipeline.core.paths import (
    ENSEMBLE_CLASS_SCORES,
    ENSEMBLE_SCORES,
    NETWORK_CLASS_SCORES,
    NETWORK_SCORES,
    PREPARE_SUMMARY,
    packed_split,
)
from pipeline.core.process import check_first, extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.tool_paths import EXPORT
from pipeline.results import require_ensemble


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if a model is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_ensemble(params)
    return params


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.core.class_sizes import are_unequal, describe_few
from pipeline.core.packed import difference
from pipeline.core.split_table import MAX_NAMED, describe_classes, read_split_table
from pipeline.inference.ensemble import Ensemble
from pipeline.networks.dataset import IMAGENET_MEAN, IMAGENET_STD, open_split
from pipeline.networks.predicting import TestTimeFlip
from pipeline.pages.rendering import render
from pipeline.photos.decoding import CENTER_CROP_SHARE, decode
from pipeline.scores.combining import Combination
from pipeline.scores.scoring import ENSEMBLE, read_scores

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

with extra_packages("export"):
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    import openvino

CHECKED_PHOTOS = 100  # test photos, at most
LARGEST_DIFFERENCE = 0.001  # allowed between the probabilities of a runtime and the pipeline
OPSET, IR_VERSION = 18, 8  # old enough for onnxruntime 1.17 and OpenCV 4.11

Run = Callable[[np.ndarray], np.ndarray]  # maps an image, as the graphs take it, to probabilities [1, classes]


def main() -> None:
    params = read_inputs()
    ensemble = Ensemble(params, torch.device("cpu"), torch.float32)
    graphs = {name: ([network], Combination("mean_logits")) for name, network in ensemble.networks.items()}
    if ensemble.shown_members:
        graphs[ENSEMBLE] = (list(ensemble.networks.values()), ensemble.combination)
    photos = read_photos(ensemble)
    example = encode_png(draw_example())
    pixels = np.concatenate([photos, decode(example, ensemble.image_size, ensemble.resize)[np.newaxis]])
    expected = probabilities_of(ensemble, pixels)
    differences = {}
    with atomic_write() as write_to:
        for name, (networks, combination) in graphs.items():
            file = write_to(EXPORT / f"{name}.onnx")
            write_onnx(ImageToProbabilities(networks, combination, ensemble.image_size), ensemble.classes, file)
            differences[name] = compare(name, file, pixels, expected[name])
        write_to(EXPORT / "example.png").write_bytes(example)
        table = pd.DataFrame.from_dict(differences, orient="index")
        example_answers = {
            name: dict(zip(ensemble.classes, probabilities[-1].tolist(), strict=True))
            for name, probabilities in expected.items()
            if name in graphs
        }
        card = model_card(without_folders(params), ensemble, table, len(photos), example_answers)
        write_to(EXPORT / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    for path in EXPORT.glob("*.onnx"):
        if path.stem not in graphs:
            path.unlink()  # left over from a removed network or ensemble
    print(f"{EXPORT}/: " + ", ".join(f"{name}.onnx" for name in graphs) + ", example.png and MODEL_CARD.md")
    print(f"Largest difference between a runtime's probabilities and the pipeline's, over {len(pixels)} photos:")
    print(table.map("{:.1e}".format).to_string())


class ImageToProbabilities(nn.Module):
    """Maps one image, float32 RGB [1, 3, size, size] from 0 to 255, to probabilities, float32 [1, classes].

    Computes what the pipeline computes, with operations that runtimes agree on: no resizing (OpenVINO does not
    antialias), and no negative steps, comparisons or indices that drop an axis (OpenCV fails or is silently wrong).
    """

    def __init__(self, networks: list[nn.Module], combination: Combination, size: int) -> None:
        super().__init__()
        self.flips = [isinstance(network, TestTimeFlip) for network in networks]
        self.networks = nn.ModuleList(
            network.network if flips else network for network, flips in zip(networks, self.flips, strict=True)
        )
        self.combination = combination
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.register_buffer("mirrored", torch.arange(size - 1, -1, -1))

    def forward(self, image: Tensor) -> Tensor:
        image = (image - self.mean) / self.std
        member_logits = []
        for network, flips in zip(self.networks, self.flips, strict=True):
            logits = network(image)
            if flips:
                logits = (logits + network(image.index_select(3, self.mirrored))) / 2
            member_logits.append(logits)
        return self.combination(member_logits, softmax=softmax, votes=votes, array=torch.tensor)


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def votes(logits: Tensor) -> Tensor:
    """1.0 for the highest logit of each row, 0.0 for the others."""
    return ((logits - logits.amax(dim=1, keepdim=True)) * 2.0**100 + 1).clamp(0, 1)


def write_onnx(graph: ImageToProbabilities, classes: list[str], file: Path) -> None:
    """Write `graph` to `file`, with its weights and, in its metadata, the names of the classes."""
    size = len(graph.mirrored)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # about PyTorch's internals
        program = torch.onnx.export(
            graph.eval(),
            (torch.zeros(1, 3, size, size),),
            dynamo=True,
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # as with `dynamo`
    model = program.model_proto
    model.ir_version = IR_VERSION
    for node in model.graph.node:
        del node.metadata_props[:]  # where in this computer's code it comes from
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes)})
    onnx.save(model, file)


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


def read_photos(ensemble: Ensemble) -> np.ndarray:
    """The first test photos as prepared: uint8 [N, size, size, 3]. Raises UserError if the models need others."""
    path = packed_split("test")
    packed = open_split(path, torch.device("cpu"))
    if different := difference(packed.description, ensemble.description):
        raise UserError(f"{path} has a different {different} than the models; run `dvc repro` to fix this")
    return packed.pixels[:CHECKED_PHOTOS].numpy()


def draw_example() -> Image.Image:
    """A synthetic photo, wider than it is high: a light circle on a gradient."""
    height, width = 240, 320
    rows, columns = np.mgrid[0:height, 0:width]
    colours = [columns * 255 // width, rows * 255 // height, np.full_like(rows, 128)]
    photo = Image.fromarray(np.stack(colours, axis=-1).astype("uint8"))
    ImageDraw.Draw(photo).ellipse((60, 50, 200, 190), fill=(230, 200, 150))
    return photo


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def probabilities_of(ensemble: Ensemble, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The pipeline's probabilities [N, classes], from each network and from the ensemble (key ENSEMBLE)."""
    combined, members = ensemble.probabilities(pixels)
    return {**members, ENSEMBLE: combined}


def scores_on_test() -> dict[str, dict]:
    """The test scores of each network and of the ensemble, including those of each class (key `classes`)."""
    scores = read_scores(NETWORK_SCORES, ENSEMBLE_SCORES)
    class_scores = read_scores(NETWORK_CLASS_SCORES, ENSEMBLE_CLASS_SCORES)
    by_class = {name: rows.set_index("class").to_dict("index") for name, rows in class_scores.groupby("network")}
    test = scores[scores["split"] == "test"].set_index("network")
    return {str(name): {**row, "classes": by_class[name]} for name, row in test.to_dict("index").items()}


def model_card(
    params: Params, ensemble: Ensemble, differences: pd.DataFrame, checked: int, example: dict[str, dict[str, float]]
) -> str:
    """The model card as Markdown: input and output of the graphs, training, scores and limitations."""
    graphs = list(differences.index)
    scores = {name: row for name, row in scores_on_test().items() if name in graphs}
    photos = {name: row["photos"] for name, row in scores[graphs[-1]]["classes"].items()}
    settings = {"lr": params.lr, **params.train.model_dump(exclude={"launcher"})}
    return render(
        "model_card.md.jinja",
        classes=ensemble.classes,
        most_named=MAX_NAMED,
        main=graphs[-1],
        networks=list(ensemble.networks),
        method=ensemble.combination.method,
        test_time_flip=params.evaluate.test_time_flip,
        size=ensemble.image_size,
        crop_share=CENTER_CROP_SHARE if ensemble.resize == "center_crop" else None,
        differences=differences,
        checked=checked,
        example=example,
        opset=OPSET,
        ir_version=IR_VERSION,
        source=params.prepare.source,
        prepared=read_json(PREPARE_SUMMARY),
        photos_by_class=describe_classes(read_split_table()),
        weights=", ".join(f"{name}: {network.weights}" for name, network in params.networks.items()),
        settings=", ".join(f"{key}: {as_written(value)}" for key, value in settings.items()),
        kept_epochs=ensemble.kept_epochs,
        scores=scores,
        unequal=are_unequal(photos.values()),
        few_photos=describe_few(photos),
    )


if __name__ == "__main__":
    run_stage(main)
