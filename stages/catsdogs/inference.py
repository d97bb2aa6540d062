"""The trained networks and their combination, asked about photos that no split holds."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from catsdogs import CLASSES
from catsdogs.combining import read_combination
from catsdogs.compute import (
    INFERENCE_BATCH_SIZE,
    autocast,
    choose_device,
    choose_precision,
    keep_freed_memory,
    make_deterministic,
)
from catsdogs.dataset import normalise
from catsdogs.errors import UserError
from catsdogs.files import existing
from catsdogs.networks import load_network, ready_to_predict
from catsdogs.params import Params, read_params
from catsdogs.photos import UnreadablePhoto, decode, silence_pillow
from catsdogs.scores import predicted_labels

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Question:
    """A photo to be asked about; `read` gives its bytes, or raises UnreadablePhoto."""

    photo: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Answer:
    """What was said of a photo: probabilities of dog of the ensemble and of each member, or why it cannot be read."""

    photo: str
    ensemble: float = float("nan")
    members: dict[str, float] = field(default_factory=dict)
    unreadable: str = ""
    pixels: np.ndarray | None = None  # what the networks saw: uint8 [size, size, 3]

    @property
    def label(self) -> str:
        return "" if self.unreadable else CLASSES[predicted_labels(self.ensemble)]


class Ensemble:
    """The networks that params.yaml names as `dvc repro` has trained them, combined as metrics/ensemble.json says.

    `networks` are ready to predict on `device`. Raises UserError where one is missing, or where they do not belong
    together.
    """

    def __init__(self, params: Params, device: torch.device, dtype: torch.dtype) -> None:
        names = list(params.networks)
        self.device, self.dtype = device, dtype
        self.combination = read_combination(names)
        self.networks: dict[str, nn.Module] = {}
        descriptions = []
        for name in names:
            network, description = load_network(existing(Path(f"models/{name}.safetensors")))
            descriptions.append(description)
            self.networks[name] = ready_to_predict(network, params.test_time_flip, device)
        for key in ("image_size", "resize", "draw"):
            if len({description[key] for description in descriptions}) > 1:
                raise UserError(
                    f"{' and '.join(names)} were trained with another {key} each; run `dvc repro` to fix this"
                )
        self.image_size: int = descriptions[0]["image_size"]
        self.resize: str = descriptions[0]["resize"]

    @torch.inference_mode()
    def margins(self, pixels: np.ndarray) -> pd.DataFrame:
        """Logit of dog less logit of cat of uint8 photos [N, image_size, image_size, 3]: a column for each network."""
        images = normalise(torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2))
        columns = {}
        for name, network in self.networks.items():
            with autocast(self.device, self.dtype):
                logits = network(images).float().cpu().numpy().astype("float64")
            columns[name] = logits[:, 1] - logits[:, 0]
        return pd.DataFrame(columns)

    def answer(self, questions: list[Question], keep_pixels: bool = True) -> Iterator[Answer]:
        """An answer to each question, in their order; the photos are decoded and scaled as `prepare` does it.

        Without `keep_pixels` an answer has none: those of many photos would fill the memory.
        """

        def read_and_decode(question: Question) -> np.ndarray | UnreadablePhoto:
            try:
                return decode(question.read(), self.image_size, self.resize)
            except UnreadablePhoto as reason:
                return reason
            except OSError as error:  # gone since it was found, say
                return UnreadablePhoto(error.strerror or str(error))

        starts = range(0, len(questions), INFERENCE_BATCH_SIZE)
        batches = [questions[start : start + INFERENCE_BATCH_SIZE] for start in starts]
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(questions), desc="asking", unit=" photos", disable=None, leave=False) as bar,
        ):
            waiting: tuple[list[Question], Iterator] | None = None
            for batch in [*batches, []]:
                started = batch, pool.map(read_and_decode, batch)  # decoded while the networks look at those before
                if waiting:
                    asked, decoded = waiting
                    yield from self._answer_batch(asked, list(decoded), keep_pixels)
                    bar.update(len(asked))
                waiting = started

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
    """The ensemble that params.yaml names, on the GPU where there is one. Raises UserError."""
    params = read_params()
    make_deterministic()
    keep_freed_memory()
    silence_pillow()
    device = choose_device()
    return Ensemble(params, device, choose_precision(params.precision, device))
