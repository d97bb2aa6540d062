"""The trained ensemble, applied to new photos."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import require_file
from pipeline.core.packed import difference
from pipeline.core.paths import REJECTION, model
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble, require_results
from pipeline.networks.compute import autocast, set_up
from pipeline.networks.explaining import heat_maps
from pipeline.networks.models import load_model
from pipeline.networks.normalisation import Normalisation
from pipeline.networks.predicting import INFERENCE_BATCH_SIZE, ready_to_predict
from pipeline.networks.rejection import Rejection, load_rejection
from pipeline.photos.decoding import UnreadablePhoto, silence_pillow
from pipeline.photos.decoding_many import decoded_images
from pipeline.scores.combining import read_combination, repeats_member
from pipeline.scores.scoring import predicted_labels

import numpy as np
import torch
from scipy.special import softmax
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class InputPhoto:
    """A photo to classify; `read` returns its bytes or raises UnreadablePhoto."""

    photo: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Prediction:
    """The result for a photo: each class's probability from the ensemble and each member, or why it is unreadable."""

    photo: str
    ensemble: dict[str, float] = field(default_factory=dict)
    members: dict[str, dict[str, float]] = field(default_factory=dict)
    rejected: bool = False  # the photo seems to show none of the classes
    unreadable: str = ""
    pixels: np.ndarray | None = None  # the image as the networks saw it: uint8 [size, size, 3]
    heat_maps: dict[str, np.ndarray] = field(default_factory=dict)  # where each network looked: see heat_maps()

    @property
    def label(self) -> str:
        """The class with the highest probability, the first one in a tie; empty for an unreadable photo."""
        return max(self.ensemble, key=self.ensemble.__getitem__, default="")

    @property
    def confidence(self) -> float:
        """The probability of `label`; NaN for an unreadable photo."""
        return self.ensemble.get(self.label, float("nan"))


def file_version(path: Path) -> tuple[int, int, int]:
    """What is different if a file is replaced or written to."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


class Ensemble:
    """The trained networks of params.yaml, combined as models/combination.json says.

    `networks` are ready to predict on `device`, for images normalised by their `normalisations`, in the order of
    combination.json, because DVC reruns nothing if only their order in params.yaml changes; `classes` are in the
    order of their outputs; `kept_epochs` are the epochs that `train` kept: 0 for a fitted head, a text such as
    `0+6 (1:3)` for a mean, None in models of earlier versions; `description` is the first model's, and all are for the
    same photos.
    Raises UserError if a model or combination.json is missing, or if the models were not trained with the same classes,
    image size, resize and split.
    """

    def __init__(self, params: Params, device: torch.device, dtype: torch.dtype) -> None:
        require_ensemble(params)
        names = list(params.networks)
        self.device, self.dtype = device, dtype
        self.networks: dict[str, nn.Module] = {}
        self.normalisations: dict[str, Normalisation] = {}
        descriptions = []
        self._versions = {name: file_version(model(name)) for name in names}
        for name in names:
            network, description = load_model(model(name))
            descriptions.append(description)
            self.normalisations[name] = Normalisation.of(description)
            self.networks[name] = ready_to_predict(network, params.evaluate.test_time_flip, device)
        self.description = descriptions[0]
        for description in descriptions:
            if different := difference(self.description, description):
                raise UserError(
                    f"{' and '.join(names)} were not all trained with the same {different}; run `dvc repro` to fix this"
                )
        self.kept_epochs = {
            name: description.get("kept_epoch") for name, description in zip(names, descriptions, strict=True)
        }
        self.classes: list[str] = self.description["classes"]
        self.combination = read_combination(names, self.classes)
        self.networks = {name: self.networks[name] for name in self.combination.members}
        self._false_rejection_rate = params.reject.false_rejection_rate
        self.image_size: int = self.description["image_size"]
        self.resize: str = self.description["resize"]

    @property
    def can_reject(self) -> bool:
        """Whether photos that show none of the classes are rejected."""
        return self._false_rejection_rate is not None

    @property
    def shown_members(self) -> list[str]:
        """The networks to show next to the ensemble: none if it only repeats its single network."""
        names = list(self.networks)
        return [] if repeats_member(self.combination.method, names) else names

    @torch.inference_mode()
    def logits(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Each network's logits, float64 [N, classes], for uint8 images [N, image_size, image_size, 3]."""
        images = self._images(pixels)
        logits = {}
        for name, network in self.networks.items():
            with autocast(self.device, self.dtype):
                logits[name] = network(images[name]).float().cpu().numpy().astype("float64")
        return logits

    def probabilities(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The probabilities [N, classes] from the ensemble, and those from each network, for images as in `logits`."""
        logits = self.logits(pixels)
        members = {name: softmax(values, axis=1) for name, values in logits.items()}
        return self.combination(list(logits.values())), members

    def rejects(self, pixels: np.ndarray) -> np.ndarray:
        """Whether each image seems to show none of the classes, bool [N], for images as in `logits`."""
        if self.rejection is None:
            return np.zeros(len(pixels), bool)
        return self.similarities(pixels) < self.rejection.threshold

    def similarities(self, pixels: np.ndarray) -> np.ndarray:
        """How similar each image is to known photos, float32 [N], for images as in `logits`, if it `can_reject`."""
        assert self.rejection is not None
        return self.rejection.similarities(self._on_device(pixels), self.dtype).numpy()

    @cached_property
    def rejection(self) -> Rejection | None:
        """What rejects photos; None if that is off.

        Raises UserError if it is missing, or was not made for the same photos as the models.
        """
        if self._false_rejection_rate is None:
            return None
        require_results(REJECTION)
        rejection = load_rejection(REJECTION, self._false_rejection_rate, self.device)
        if different := difference(rejection.description, self.description):
            raise UserError(
                f"{REJECTION} and the models were not made with the same {different}; run `dvc repro` to fix this"
            )
        return rejection

    def _on_device(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)

    def _images(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        """The images as each network expects them, the same tensor for all that expect the same."""
        on_device = self._on_device(pixels)
        normalised = {normalise: normalise(on_device) for normalise in self.normalisations.values()}
        return {name: normalised[normalise] for name, normalise in self.normalisations.items()}

    def heat_maps(self, pixels: np.ndarray, members: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What supports each network's prediction, for images as in `logits`: uint8 [N, height, width].

        `members` are their probabilities. A network without a last feature map has no heat maps.
        """
        images = self._images(pixels)
        found = {
            name: heat_maps(network, images[name], torch.from_numpy(predicted_labels(members[name])).to(self.device))
            for name, network in self._unfolded.items()
        }
        return {name: maps.numpy() for name, maps in found.items() if maps is not None}

    @cached_property
    def _unfolded(self) -> dict[str, nn.Module]:
        """The networks with gradients. Raises UserError if their files are no longer those that predict."""
        for name in self.networks:
            if file_version(require_file(model(name))) != self._versions[name]:
                raise UserError(f"{model(name)} has changed since it was loaded; start this program again")
        return {name: load_model(model(name))[0].to(self.device) for name in self.networks}

    def predict(
        self, photos: list[InputPhoto], keep_pixels: bool = True, explain: bool = False, reject: bool = True
    ) -> Iterator[Prediction]:
        """Yield a prediction for each photo, in order; photos are decoded and scaled as in `prepare`.

        With `keep_pixels=False` predictions have no `pixels`, which saves memory when there are many photos. Only with
        `explain` do they have `heat_maps`, which takes several times as long. With `reject=False` none is `rejected`.
        """
        reads = [photo.read for photo in photos]
        with (
            decoded_images(reads, self.image_size, self.resize) as images,  # the next ones, while the networks run
            tqdm(total=len(photos), desc="predicting", unit=" photos", disable=None, leave=False) as bar,
        ):
            for start in range(0, len(photos), INFERENCE_BATCH_SIZE):
                batch = photos[start : start + INFERENCE_BATCH_SIZE]
                yield from self._predict_batch(batch, list(islice(images, len(batch))), keep_pixels, explain, reject)
                bar.update(len(batch))

    def _predict_batch(
        self,
        photos: list[InputPhoto],
        decoded: list[np.ndarray | UnreadablePhoto],
        keep_pixels: bool,
        explain: bool,
        reject: bool,
    ) -> Iterator[Prediction]:
        readable = [
            (photo.photo, pixels)
            for photo, pixels in zip(photos, decoded, strict=True)
            if not isinstance(pixels, UnreadablePhoto)
        ]
        predictions = self.predict_images(readable, keep_pixels, explain, reject)
        for photo, pixels in zip(photos, decoded, strict=True):
            if isinstance(pixels, UnreadablePhoto):
                yield Prediction(photo.photo, unreadable=str(pixels))
            else:
                yield next(predictions)

    def predict_images(
        self, photos: list[tuple[str, np.ndarray]], keep_pixels: bool = True, explain: bool = False, reject: bool = True
    ) -> Iterator[Prediction]:
        """As `predict`, in one batch, for at least one photo, each given by its name and its decoded image."""
        images = np.stack([pixels for _, pixels in photos])
        ensemble, members = self.probabilities(images)
        rejected = self.rejects(images) if reject else np.zeros(len(images), bool)
        heat_maps = self.heat_maps(images, members) if explain else {}
        for row, (photo, pixels) in enumerate(photos):
            yield Prediction(
                photo,
                self._by_class(ensemble[row]),
                {name: self._by_class(probabilities[row]) for name, probabilities in members.items()},
                rejected=bool(rejected[row]),
                pixels=pixels if keep_pixels else None,
                heat_maps={name: maps[row] for name, maps in heat_maps.items()},
            )

    def _by_class(self, probabilities: np.ndarray) -> dict[str, float]:
        return dict(zip(self.classes, probabilities.tolist(), strict=True))


def load_ensemble() -> Ensemble:
    """Load the ensemble of params.yaml, on its device. Raises UserError as Ensemble and read_params do."""
    params = read_params(Params)
    silence_pillow()
    return Ensemble(params, *set_up(params.device, params.precision, params.threads))
