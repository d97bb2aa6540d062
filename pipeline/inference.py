"""The trained ensemble, applied to new photos."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.core import CLASSES
from pipeline.core.errors import UserError
from pipeline.core.files import require_file
from pipeline.core.params import Params, read_params
from pipeline.core.paths import model
from pipeline.networks.compute import autocast, set_up
from pipeline.networks.dataset import normalise
from pipeline.networks.models import load_model
from pipeline.networks.predicting import INFERENCE_BATCH_SIZE, ready_to_predict
from pipeline.photos.decoding import UnreadablePhoto, decode, silence_pillow
from pipeline.scores.combining import read_combination
from pipeline.scores.scoring import predicted_labels

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Question:
    """A photo to classify; `read` returns its bytes or raises UnreadablePhoto."""

    photo: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Answer:
    """The result for a photo: the probability of dog from the ensemble and each member, or why it is unreadable."""

    photo: str
    ensemble: float = float("nan")
    members: dict[str, float] = field(default_factory=dict)
    unreadable: str = ""
    pixels: np.ndarray | None = None  # the image as the networks saw it: uint8 [size, size, 3]

    @property
    def label(self) -> str:
        return "" if self.unreadable else CLASSES[predicted_labels(self.ensemble)]


class Ensemble:
    """The trained networks of params.yaml, combined as metrics/ensemble.json says.

    `networks` are ready to predict on `device`. Raises UserError if a model or ensemble.json is missing, or if the
    models were not trained with the same image size, resize and split.
    """

    def __init__(self, params: Params, device: torch.device, dtype: torch.dtype) -> None:
        names = list(params.networks)
        self.device, self.dtype = device, dtype
        self.combination = read_combination(names)
        self.networks: dict[str, nn.Module] = {}
        descriptions = []
        for name in names:
            network, description = load_model(require_file(model(name)))
            descriptions.append(description)
            self.networks[name] = ready_to_predict(network, params.evaluate.test_time_flip, device)
        for key, meaning in {"image_size": "image_size", "resize": "resize", "draw": "split"}.items():
            if len({description[key] for description in descriptions}) > 1:
                raise UserError(
                    f"{' and '.join(names)} were not all trained with the same {meaning}; run `dvc repro` to fix this"
                )
        self.image_size: int = descriptions[0]["image_size"]
        self.resize: str = descriptions[0]["resize"]

    @torch.inference_mode()
    def margins(self, pixels: np.ndarray) -> pd.DataFrame:
        """Logit of dog minus logit of cat for uint8 images [N, image_size, image_size, 3]; one column per network."""
        images = normalise(torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2))
        columns = {}
        for name, network in self.networks.items():
            with autocast(self.device, self.dtype):
                logits = network(images).float().cpu().numpy().astype("float64")
            columns[name] = logits[:, 1] - logits[:, 0]
        return pd.DataFrame(columns)

    def answer(self, questions: list[Question], keep_pixels: bool = True) -> Iterator[Answer]:
        """Yield an answer to each question, in order; photos are decoded and scaled as in `prepare`.

        With `keep_pixels=False` answers have no `pixels`, which saves memory when there are many photos.
        """

        def read_and_decode(question: Question) -> np.ndarray | UnreadablePhoto:
            try:
                return decode(question.read(), self.image_size, self.resize)
            except UnreadablePhoto as reason:
                return reason
            except OSError as error:  # for example, deleted since it was found
                return UnreadablePhoto(error.strerror or str(error))

        starts = range(0, len(questions), INFERENCE_BATCH_SIZE)
        batches = [questions[start : start + INFERENCE_BATCH_SIZE] for start in starts]
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(questions), desc="predicting", unit=" photos", disable=None, leave=False) as bar,
        ):
            previous: tuple[list[Question], Iterator] | None = None
            # Each batch is decoded while the networks run on the one before. The empty batch at the end starts no
            # decoding, and only lets the networks run on the last one.
            for batch in [*batches, []]:
                current = (batch, pool.map(read_and_decode, batch))
                if previous:
                    asked, decoded = previous
                    yield from self._answer_batch(asked, list(decoded), keep_pixels)
                    bar.update(len(asked))
                previous = current

    def _answer_batch(
        self, questions: list[Question], decoded: list[np.ndarray | UnreadablePhoto], keep_pixels: bool
    ) -> Iterator[Answer]:
        readable = [pixels for pixels in decoded if not isinstance(pixels, UnreadablePhoto)]
        if readable:
            margins = self.margins(np.stack(readable))
            rows = zip(self.combination(margins.to_numpy().T), expit(margins).to_dict("records"), strict=True)
        for question, pixels in zip(questions, decoded, strict=True):
            if isinstance(pixels, UnreadablePhoto):
                yield Answer(question.photo, unreadable=str(pixels))
            else:
                ensemble, members = next(rows)
                yield Answer(question.photo, float(ensemble), members, pixels=pixels if keep_pixels else None)


def load_ensemble() -> Ensemble:
    """Load the ensemble of params.yaml, on the GPU if there is one. Raises UserError as Ensemble and read_params do."""
    params = read_params()
    silence_pillow()
    return Ensemble(params, *set_up(params.precision))
