"""Answer Kaggle's unlabelled photos, and write what Kaggle scores: submission.csv.

Usage, from the project's root: python stages/submission.py [ARCHIVE]
Reads data/raw/test1.zip (of "Dogs vs. Cats") or data/raw/test.zip (of its "Redux"), with photos named 1.jpg, 2.jpg and
so on; writes a line for each in the order of these numbers: id, and label, which is the probability of dog.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import re
from functools import partial
from pathlib import Path, PurePosixPath

from catsdogs.combining import ENSEMBLE_PREDICTIONS
from catsdogs.errors import UserError
from catsdogs.files import existing, written_whole
from catsdogs.inference import Question, load_ensemble
from catsdogs.photos import Photo, PhotoSource
from catsdogs.process import run_stage
from catsdogs.scores import label_numbers, predicted_labels

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss

ARCHIVES = (Path("data/raw/test1.zip"), Path("data/raw/test.zip"))
SUBMISSION = Path("submission.csv")
CLIPS = np.logspace(-7, -1, 241)  # the least probabilities tried


def main() -> None:
    with PhotoSource(archive_named(sys.argv[1:])) as source:
        photos = numbered(source)
        clip, loss, unclipped_loss = choose_clip()
        questions = [Question(photo.name, partial(source.read, photo)) for photo in photos.values()]
        ensemble = load_ensemble()
        answers = list(ensemble.answer(questions, keep_pixels=False))

    probabilities = np.array([0.5 if answer.unreadable else answer.ensemble for answer in answers])
    submission = pd.DataFrame({"id": list(photos), "label": probabilities.clip(clip, 1 - clip)})
    with written_whole() as write_to:
        submission.to_csv(write_to(SUBMISSION), index=False, float_format="%.7f")
    for answer in answers:
        if answer.unreadable:
            print(f"warning: {answer.photo}: {answer.unreadable}; submitted as 0.5", file=sys.stderr)
    if ensemble.combination.method == "majority_vote":
        print("warning: majority_vote gives shares of votes, no beliefs: log loss suffers", file=sys.stderr)
    print(
        f"{SUBMISSION}: {len(submission)} photos, {predicted_labels(probabilities).sum()} of them dogs; probabilities "
        f"kept between {clip:.2g} and {1 - clip:.7g}, which on validation gives log loss {loss:.6f} (without: "
        f"{unclipped_loss:.6f})"
    )


def archive_named(arguments: list[str]) -> Path:
    if len(arguments) > 1:
        raise UserError("expected at most one argument: python stages/submission.py ARCHIVE")
    if arguments:
        return Path(arguments[0])
    for path in ARCHIVES:
        if path.exists():
            return path
    raise UserError(
        f"there is neither {ARCHIVES[0]} nor {ARCHIVES[1]}; get it from https://www.kaggle.com/c/dogs-vs-cats/data, or "
        "name another: python stages/submission.py ARCHIVE"
    )


def numbered(source: PhotoSource) -> dict[int, Photo]:
    """The photos by their number, in its order. Raises UserError unless they are 1 to the count of all."""
    photos: dict[int, Photo] = {}
    for photo in source.photos():
        stem = PurePosixPath(photo.path).stem
        if not re.fullmatch(r"[1-9][0-9]*", stem) or int(stem) in photos:
            raise UserError(f"{source.path}: holds {photo.path}; expected Kaggle's names, 1.jpg, 2.jpg and so on, once")
        photos[int(stem)] = photo
    if missing := next((number for number in range(1, len(photos) + 1) if number not in photos), None):
        raise UserError(f"{source.path}: {missing}.jpg is missing; expected all of 1.jpg to {max(photos)}.jpg")
    return dict(sorted(photos.items()))


def choose_clip() -> tuple[float, float, float]:
    """The least probability for which validation's log loss is lowest; that log loss, and the one without any."""
    predictions = pd.read_csv(existing(ENSEMBLE_PREDICTIONS))
    validation = predictions[predictions["split"] == "validation"]
    probabilities, labels = validation["probability_of_dog"].to_numpy(), label_numbers(validation)
    losses = [log_loss(labels, probabilities.clip(clip, 1 - clip), labels=[0, 1]) for clip in CLIPS]
    best = int(np.argmin(losses))
    return float(CLIPS[best]), losses[best], log_loss(labels, probabilities, labels=[0, 1])


if __name__ == "__main__":
    run_stage(main)
