"""Predict Kaggle's unlabelled photos of cats and dogs and write submission.csv, the file that Kaggle scores.

Reads data/raw/test1.zip ("Dogs vs. Cats") or data/raw/test.zip (its "Redux" edition), with photos named 1.jpg, 2.jpg
and so on. Writes one row per photo, in the order of these numbers: id, and label, which is the probability of dog.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import re
from functools import partial
from pathlib import PurePosixPath

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import atomic_write
from pipeline.core.process import check_first, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.tool_paths import SUBMISSION, UNLABELLED_ARCHIVES
from pipeline.results import require_ensemble


def read_archive() -> Path:
    """Kaggle's photos. Raises UserError if they or a model are missing, or if the params are wrong."""
    parser = ArgumentParser(__doc__)
    names = " or ".join(map(str, UNLABELLED_ARCHIVES))
    parser.add_argument("archive", nargs="?", type=Path, metavar="ARCHIVE", help=f"Kaggle's photos (default: {names})")
    archive = parser.parse_args().archive or find_archive()
    require_ensemble(read_params(Params))
    return archive


def find_archive() -> Path:
    for path in UNLABELLED_ARCHIVES:
        if path.exists():
            return path
    first, second = UNLABELLED_ARCHIVES
    raise UserError(
        f"neither {first} nor {second} exists; download one from "
        "https://www.kaggle.com/c/dogs-vs-cats/data, or give the path: python tools/submission.py ARCHIVE"
    )


if __name__ == "__main__":
    check_first(read_archive)

from pipeline.inference.ensemble import InputPhoto, load_ensemble
from pipeline.photos.labels import ClassNames
from pipeline.photos.source import Photo, PhotoSource
from pipeline.scores.predictions import PROBABILITY, classes_of, read_ensemble_predictions

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss

CLIPS = np.logspace(-7, -1, 241)  # candidates for the lowest probability


def main() -> None:
    with PhotoSource(read_archive()) as source:
        by_number = numbered(source)
        clip, loss, unclipped_loss = choose_clip()
        photos = [InputPhoto(photo.name, partial(source.read, photo)) for photo in by_number.values()]
        ensemble = load_ensemble()
        predictions = list(ensemble.predict(photos, keep_pixels=False, reject=False))

    dog = dog_of(ensemble.classes)
    probabilities = np.array([0.5 if prediction.unreadable else prediction.ensemble[dog] for prediction in predictions])
    submission = pd.DataFrame({"id": list(by_number), "label": probabilities.clip(clip, 1 - clip)})
    with atomic_write() as write_to:
        submission.to_csv(write_to(SUBMISSION), index=False, float_format="%.7f")
    for prediction in predictions:
        if prediction.unreadable:
            print(f"warning: {prediction.photo}: {prediction.unreadable}; submitted as 0.5", file=sys.stderr)
    if ensemble.combination.method == "majority_vote":
        print(
            "warning: majority_vote gives shares of votes, not probabilities; expect a worse log loss", file=sys.stderr
        )
    dogs = sum(prediction.label == dog for prediction in predictions)
    print(
        f"{SUBMISSION}: {len(submission)} photos, {dogs} classified as dogs; "
        f"probabilities clipped to [{clip:.2g}, {1 - clip:.7g}], which gives a log loss of {loss:.6f} on validation "
        f"({unclipped_loss:.6f} without clipping)"
    )


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


if __name__ == "__main__":
    run_stage(main)
