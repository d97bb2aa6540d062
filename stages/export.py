"""Hand the trained networks on as ONNX: each member, and the ensemble as one graph, with a model card beside them.

Usage, from the project's root: python stages/export.py
Reads models/, metrics/, data/prepared/split.csv and the photos that `source` names; writes export/. A graph takes
photos of any size, scales and normalises them itself, and gives their probabilities of dog.
"""

import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from catsdogs.combining import ENSEMBLE_SCORES, Combination
from catsdogs.dataset import normalise
from catsdogs.errors import UserError, extra_packages, run_stage
from catsdogs.files import PREPARED, existing, read_json, written_whole
from catsdogs.inference import Ensemble
from catsdogs.params import Params, read_params, without_folders
from catsdogs.photos import CENTER_CROP_SHARE, PhotoSource, UnreadablePhoto, decode, open_upright, silence_pillow

with extra_packages("export"):
    import onnxruntime
    import onnxscript  # noqa: F401 (PyTorch's exporter needs it)

EXPORT = Path("export")
CHECKED_PHOTOS = 100  # of test, at most
LARGEST_DIFFERENCE = 0.001  # of a probability, between ONNX and PyTorch
LARGEST_MEAN_DIFFERENCE = 0.02  # between ONNX and the pipeline, where scaling is not quite the same
OPSET = 20
TIE = 2**-10  # halves are rounded up, as Pillow does, also where their last digit differs


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
    expected = probabilities_of(ensemble, photos)
    differences: dict[str, tuple[float, float]] = {}
    with written_whole() as write_to:
        for name, (networks, combination) in graphs.items():
            graph = PhotosToProbability(networks, combination, ensemble.image_size, ensemble.resize).eval()
            file = write_to(EXPORT / f"{name}.onnx")
            write_onnx(graph, file)
            differences[name] = check(file, graph, photos, expected[name])
        card = model_card(without_folders(params), ensemble, differences, len(photos))
        write_to(EXPORT / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    for path in EXPORT.glob("*.onnx"):
        if path.stem not in graphs:
            path.unlink()  # of a network that was taken out; the card knows nothing of it
    print(f"{EXPORT}/: " + ", ".join(f"{name}.onnx" for name in graphs) + " and MODEL_CARD.md")
    print(differences_table(differences).to_string())


class PhotosToProbability(nn.Module):
    """From photos, uint8 RGB [N, height, width, 3], to probabilities of dog, float32 [N]: `decode` and all after it.

    Scaling is Pillow's in two passes, each rounded to whole numbers, to within one of 255 steps; where a center crop
    has no whole number of pixels, its place is rounded as well.
    """

    def __init__(self, networks: list[nn.Module], combination: Combination, image_size: int, resize: str) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.combination, self.image_size, self.resize = combination, image_size, resize
        normalise(torch.zeros(1, 3, 1, 1))  # makes its constants, which must not be made while a graph is traced

    def forward(self, photos: Tensor) -> Tensor:
        pixels = photos.permute(0, 3, 1, 2).float()
        size = self.image_size
        if self.resize == "center_crop":
            height, width = pixels.shape[2:]
            shorter, scaled = torch.sym_min(height, width), round(size / CENTER_CROP_SHARE)
            pixels = scale(pixels, height * scaled // shorter, width * scaled // shorter)
            top, left = (pixels.shape[2] - size) // 2, (pixels.shape[3] - size) // 2
            pixels = pixels[:, :, top : top + size, left : left + size]
        else:
            pixels = scale(pixels, size, size)
        images = normalise(pixels)
        logits = torch.stack([network(images) for network in self.networks], dim=1)
        return self.combination(logits[:, :, 1] - logits[:, :, 0], torch.sigmoid)


def scale(pixels: Tensor, height: int, width: int) -> Tensor:
    for size in ((pixels.shape[2], width), (height, width)):
        pixels = (interpolate(pixels, size, mode="bilinear", antialias=True) + 0.5 + TIE).floor()
    return pixels


def write_onnx(graph: PhotosToProbability, file: Path) -> None:
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in range(3)}
    example = torch.zeros(2, 200, 300, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # of PyTorch's own doings
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            input_names=["photos"],
            output_names=["probability_of_dog"],
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            verbose=False,
        )
    program.save(file)


def test_photos(source: PhotoSource) -> list[bytes]:
    """The first photos of test, as they were before `prepare` scaled them."""
    table = pd.read_csv(existing(PREPARED / "split.csv"), keep_default_na=False)
    names = table.loc[table["split"] == "test", "photo"].head(CHECKED_PHOTOS)
    photos = {photo.name: photo for photo in source.photos()}
    if missing := [name for name in names if name not in photos]:
        raise UserError(f"{source.path}: holds no {missing[0]}, which split.csv names; `dvc repro` prepares it anew")
    try:
        return [source.read(photos[name]) for name in names]
    except UnreadablePhoto as reason:
        raise UserError(f"{source.path}: a photo of test is {reason}; get the archive anew") from None


def probabilities_of(ensemble: Ensemble, photos: list[bytes]) -> dict[str, np.ndarray]:
    """What PyTorch says of photos: the probabilities of dog [N] of each network and, as `ensemble`, of all."""
    pixels = np.stack([decode(photo, ensemble.image_size, ensemble.resize) for photo in photos])
    margins = ensemble.margins(pixels)
    return {**expit(margins), "ensemble": ensemble.combination(margins.to_numpy())}


def check(file: Path, graph: PhotosToProbability, photos: list[bytes], expected: np.ndarray) -> tuple[float, float]:
    """The largest differences of the file's probabilities from PyTorch's, for the same graph and for the pipeline.

    Raises UserError where the former is more than rounding.
    """
    session = onnxruntime.InferenceSession(file)
    from_graph, from_pipeline = [], []
    for photo, of_pipeline in zip(tqdm(photos, desc=file.name, disable=None, leave=False), expected, strict=True):
        pixels = np.array(open_upright(photo))[np.newaxis]
        [[probability]] = session.run(None, {"photos": pixels})
        with torch.inference_mode():
            [of_graph] = graph(torch.from_numpy(pixels)).tolist()
        from_graph.append(abs(probability - of_graph))
        from_pipeline.append(abs(probability - of_pipeline))
    if max(from_graph) > LARGEST_DIFFERENCE:
        raise UserError(f"{file.stem}: ONNX and PyTorch differ by {max(from_graph):.2g}; nothing was exported")
    if np.mean(from_pipeline) > LARGEST_MEAN_DIFFERENCE:
        raise UserError(f"{file.stem}: scaling differs from the pipeline's; nothing was exported")
    return float(max(from_graph)), float(max(from_pipeline))


def differences_table(differences: dict[str, tuple[float, float]]) -> pd.DataFrame:
    columns = ["ONNX from PyTorch", "ONNX from the pipeline"]
    table = pd.DataFrame.from_dict(differences, orient="index", columns=columns)
    return table.map("{:.1e}".format)


def model_card(params: Params, ensemble: Ensemble, differences: dict[str, tuple[float, float]], checked: int) -> str:
    """Markdown: what the graphs take and give, what they were trained on, how good they are, and where they fail."""
    prepared = read_json(Path("metrics/prepare.json"))
    scores = read_json(Path("metrics/evaluate.json"))
    scores["ensemble"] = read_json(ENSEMBLE_SCORES)
    rows = [
        f"| {name} | {of['correct']} of {of['total']} ({of['accuracy']:.4f}) | {of['accuracy_low']:.4f} to "
        f"{of['accuracy_high']:.4f} | {of['log_loss']:.4f} | {of['recall']['cat']:.4f} | {of['recall']['dog']:.4f} | "
        f"{differences[name][0]:.1e} | {differences[name][1]:.1e} |"
        for name, of in scores.items()
    ]
    weights = ", ".join(f"{name}: {network.weights}" for name, network in params.networks.items())
    settings = {"lr": params.lr, "test_time_flip": params.test_time_flip, **asdict(params.train)}
    recipe = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return CARD.format(
        members=", ".join(ensemble.networks),
        method=ensemble.combination.method,
        image_size=ensemble.image_size,
        resize=ensemble.resize,
        source=params.source,
        prepared=", ".join(f"{prepared[split]} for {split}" for split in ("train", "validation", "test")),
        weights=weights,
        recipe=recipe,
        rows="\n".join(rows),
        checked=checked,
    )


CARD = """# Cats and dogs: model card

`ensemble.onnx` combines {members} (`{method}`); each also has a file of its own.

## In and out

- `photos`: uint8 RGB, [N, height, width, 3], N photos of one size, turned upright, what is transparent made white. The
  graph scales them to {image_size} pixels a side (`{resize}`) and normalises them.
- `probability_of_dog`: float32, [N], from 0 (cat) to 1 (dog).

```python
import numpy, onnxruntime
from PIL import Image, ImageOps

# of a photo without transparent parts
photo = numpy.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
session = onnxruntime.InferenceSession("ensemble.onnx")
[[probability_of_dog]] = session.run(None, {{"photos": photo[None]}})
```

## Trained on

Photos of `{source}`: {prepared}, half cats and half dogs in each.
Weights to begin with: {weights}. Recipe: {recipe}.

## Scores

On the photos for test, which nothing was trained or chosen on. The interval is the accuracy's, at 95 %. The last two
columns are the largest differences of a probability over {checked} of these photos: ONNX from PyTorch on the same
graph, and ONNX from the pipeline, whose photos are scaled by Pillow.

| | right | interval | log loss | of cats right | of dogs right | ONNX | ONNX and scaling |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## Limits

- Every picture is called a cat or a dog, whatever it shows; a probability near 0.5 does not mean "neither".
- The scores are of photos like those it was trained on. Drawings, other animals, several animals in a photo, and
  cameras that look another way (night, fisheye) were not tested.
- A photo under the wrong label, of which such collections hold some, counts as a mistake.
"""


if __name__ == "__main__":
    run_stage(main)
