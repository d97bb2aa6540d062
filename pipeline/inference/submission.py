"""What Kaggle's competitions of cats and dogs ask for: photos by number, and probabilities clipped for log loss."""

import re
from pathlib import PurePosixPath

from pipeline.core.errors import UserError, list_some
from pipeline.photos.labels import ClassNames
from pipeline.photos.source import Photo, PhotoSource
from pipeline.scores.predictions import PROBABILITY, classes_of, read_ensemble_predictions

import numpy as np
from sklearn.metrics import log_loss

CLIPS = np.logspace(-7, -1, 241)  # candidates for the lowest probability


def numbered(source: PhotoSource) -> dict[int, Photo]:
    """The photos by number, in ascending order. Raises UserError unless the numbers are 1 to the number of photos."""
    photos: dict[int, Photo] = {}
    for photo in source.photos():
        stem = PurePosixPath(photo.path).stem
        if not re.fullmatch(r"[1-9][0-9]*", stem) or int(stem) in photos:
            raise UserError(
                f"{source.path}: contains {photo.path}; expected Kaggle's names, 1.jpg, 2.jpg and so on, each once"
            )
        photos[int(stem)] = photo
    if missing := next((number for number in range(1, len(photos) + 1) if number not in photos), None):
        raise UserError(f"{source.path}: {missing}.jpg is missing; expected all of 1.jpg to {max(photos)}.jpg")
    return dict(sorted(photos.items()))


def choose_clip() -> tuple[float, float, float]:
    """The clip with the lowest log loss on validation, that log loss, and the log loss without clipping.

    A clip c limits probabilities to [c, 1 - c]. Raises UserError if the ensemble has other classes than cat and dog.
    """
    predictions = read_ensemble_predictions()
    dog = dog_of(classes_of(predictions))
    validation = predictions[predictions["split"] == "validation"]
    probabilities, labels = validation[f"{PROBABILITY}{dog}"].to_numpy(), validation["label"] == dog
    losses = [log_loss(labels, probabilities.clip(clip, 1 - clip)) for clip in CLIPS]
    best = int(np.argmin(losses))
    return float(CLIPS[best]), losses[best], log_loss(labels, probabilities)


def dog_of(classes: list[str]) -> str:
    """The name of the class dog, such as `Dogs`. Raises UserError unless the classes are cat and dog."""
    names = ClassNames(classes)
    cat, dog = names.label("cat"), names.label("dog")
    if len(classes) != 2 or cat is None or dog is None:
        raise UserError(
            f"the classes are {list_some(classes)}; a submission needs cat and dog; set classes in params.yaml and run "
            "`dvc repro`"
        )
    return classes[dog]
