"""Export the trained networks as ONNX: each member, and the ensemble as one graph, with a model card beside them.

Usage, from the project's root: python stages/export.py
Reads models/, metrics/, data/prepared/split.csv and the photos that `source` names; writes export/. A graph takes one
image, already scaled, and gives the probabilities of cat and dog. The card has the Python code that scales a photo, and
example.png, a synthetic photo with the expected answer.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict

from catsdogs.combining import ENSEMBLE_SCORES, Combination
from catsdogs.dataset import IMAGENET_MEAN, IMAGENET_STD
from catsdogs.errors import UserError
from catsdogs.files import PREPARED, existing, read_json, written_whole
from catsdogs.inference import Ensemble
from catsdogs.networks import BothViews
from catsdogs.pages import render
from catsdogs.params import Params, read_params, without_folders
from catsdogs.photos import CENTER_CROP_SHARE, PhotoSource, UnreadablePhoto, decode, silence_pillow
from catsdogs.process import extra_packages, run_stage

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from scipy.special import expit
from torch import Tensor, nn
from tqdm import tqdm

with extra_packages("export"):
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    import openvino

EXPORT = Path("export")
CHECKED_PHOTOS = 100  # of test, at most
LARGEST_DIFFERENCE = 0.001  # of a probability, between a runtime and the pipeline
OPSET, IR_VERSION = 18, 8  # old enough for onnxruntime 1.14 and OpenCV 4.11

Run = Callable[[np.ndarray], np.ndarray]  # from an image as the graphs take it to probabilities [1, 2]


def main() -> None:
    params = read_params()
    silence_pillow()
    ensemble = Ensemble(params, torch.device("cpu"), torch.float32)
    graphs = {
        **{name: ([network], Combination("mean_logits")) for name, network in ensemble.networks.items()},
        "ensemble": (list(ensemble.networks.values()), ensemble.combination),
    }
    with PhotoSource(Path(params.source)) as source:
        photos = test_photos(source)
    example = encode_png(draw_example())
    pixels = np.stack([decode(photo, ensemble.image_size, ensemble.resize) for photo in [*photos, example]])
    expected = probabilities_of(ensemble, pixels)
    differences = {}
    with written_whole() as write_to:
        for name, (networks, combination) in graphs.items():
            file = write_to(EXPORT / f"{name}.onnx")
            write_onnx(ImageToProbabilities(networks, combination, ensemble.image_size), file)
            differences[name] = compare(name, file, pixels, expected[name])
        write_to(EXPORT / "example.png").write_bytes(example)
        table = pd.DataFrame.from_dict(differences, orient="index")
        example_answers = {name: probabilities[-1] for name, probabilities in expected.items()}
        card = model_card(without_folders(params), ensemble, table, len(photos), example_answers)
        write_to(EXPORT / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    for path in EXPORT.glob("*.onnx"):
        if path.stem not in graphs:
            path.unlink()  # of a network that was taken out; the card knows nothing of it
    print(f"{EXPORT}/: " + ", ".join(f"{name}.onnx" for name in graphs) + ", example.png and MODEL_CARD.md")
    print(f"Largest difference of a probability from the pipeline's, over {len(pixels)} photos:")
    print(table.map("{:.1e}".format).to_string())


class ImageToProbabilities(nn.Module):
    """From one image, float32 RGB [1, 3, size, size] from 0 to 255, to probabilities of cat and dog, float32 [1, 2].

    What the pipeline computes, in operations that runtimes agree on: no resizing (OpenVINO leaves out antialiasing), no
    negative steps, comparisons or indices that drop an axis (OpenCV fails, or is silently wrong).
    """

    def __init__(self, networks: list[nn.Module], combination: Combination, size: int) -> None:
        super().__init__()
        self.flips = [isinstance(network, BothViews) for network in networks]
        self.networks = nn.ModuleList(
            network.network if flips else network for network, flips in zip(networks, self.flips, strict=True)
        )
        self.combination = combination
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.register_buffer("mirrored", torch.arange(size - 1, -1, -1))

    def forward(self, image: Tensor) -> Tensor:
        image = (image - self.mean) / self.std
        margins = []
        for network, flips in zip(self.networks, self.flips, strict=True):
            logits = network(image)
            if flips:
                logits = (logits + network(image.index_select(3, self.mirrored))) / 2
            margins.append(logits[:, 1:] - logits[:, :1])
        dog = self.combination(margins, torch.sigmoid, lambda margin: (margin * 2.0**100).clamp(0, 1))
        return torch.cat([1 - dog, dog], dim=1)


def write_onnx(graph: ImageToProbabilities, file: Path) -> None:
    """Write `graph` with weights inside."""
    size = len(graph.mirrored)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # of PyTorch's own doings
        program = torch.onnx.export(
            graph.eval(),
            (torch.zeros(1, 3, size, size),),
            dynamo=True,
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = IR_VERSION
    onnx.save(model, file)


def compare(name: str, file: Path, pixels: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest difference of probabilities from `expected`, those of dog [N], by runtime and version.

    Raises UserError where it is more than rounding.
    """
    runs = {f"onnxruntime {onnxruntime.__version__}": run_onnxruntime(file)}
    runs[f"OpenVINO {openvino.__version__.partition('-')[0]}"] = run_openvino(file)
    differences = {}
    for runtime, run in runs.items():
        images = pixels.transpose(0, 3, 1, 2)[:, np.newaxis].astype("float32")
        found = [run(image)[0, 1] for image in tqdm(images, desc=f"{name}, {runtime}", disable=None, leave=False)]
        differences[runtime] = float(np.abs(found - expected).max())
        if not differences[runtime] <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{name}: {runtime} and the pipeline differ by {differences[runtime]:.2g} in a probability; expected "
                f"at most {LARGEST_DIFFERENCE}; nothing was exported"
            )
    return differences


def run_onnxruntime(file: Path) -> Run:
    session = onnxruntime.InferenceSession(file)
    return lambda image: session.run(["probabilities"], {"image": image})[0]


def run_openvino(file: Path) -> Run:
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: model([image])["probabilities"]


def test_photos(source: PhotoSource) -> list[bytes]:
    """The first photos of test, as they were before `prepare` scaled them."""
    table = pd.read_csv(existing(PREPARED / "split.csv"), keep_default_na=False)
    names = table.loc[table["split"] == "test", "photo"].head(CHECKED_PHOTOS)
    photos = {photo.name: photo for photo in source.photos()}
    if missing := [name for name in names if name not in photos]:
        raise UserError(f"{source.path}: holds no {missing[0]}, which split.csv names; run `dvc repro` first")
    try:
        return [source.read(photos[name]) for name in names]
    except UnreadablePhoto as reason:
        raise UserError(f"{source.path}: a photo of test is {reason}; get the archive again") from None


def draw_example() -> Image.Image:
    """A synthetic photo, wider than high: a light ball on a ground of changing colours."""
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
    """What the pipeline says of photos: the probabilities of dog [N] of each network and, as `ensemble`, of all."""
    margins = ensemble.margins(pixels)
    return {
        **{name: expit(margins[name].to_numpy()) for name in margins},
        "ensemble": ensemble.combination(margins.to_numpy().T),
    }


def model_card(
    params: Params, ensemble: Ensemble, differences: pd.DataFrame, checked: int, example: dict[str, float]
) -> str:
    """Markdown: what the graphs take and give, what they were trained on, how good they are, and where they fail."""
    settings = {"lr": params.lr, **asdict(params.train)}
    return render(
        "model_card.md.jinja",
        networks=list(ensemble.networks),
        method=ensemble.combination.method,
        test_time_flip=params.test_time_flip,
        size=ensemble.image_size,
        crop_share=CENTER_CROP_SHARE if ensemble.resize == "center_crop" else None,
        differences=differences,
        checked=checked,
        example=example,
        opset=OPSET,
        ir_version=IR_VERSION,
        source=params.source,
        prepared=read_json(Path("metrics/prepare.json")),
        weights=", ".join(f"{name}: {network.weights}" for name, network in params.networks.items()),
        settings=", ".join(f"{key}: {value}" for key, value in settings.items()),
        scores={**read_json(Path("metrics/evaluate.json")), "ensemble": read_json(ENSEMBLE_SCORES)},
    )


if __name__ == "__main__":
    run_stage(main)
