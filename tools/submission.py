"""Predict Kaggle's unlabelled photos of cats and dogs and write submission.csv, the file that Kaggle scores.

Reads data/raw/test1.zip ("Dogs vs. Cats") or data/raw/test.zip (its "Redux" edition), with photos named 1.jpg, 2.jpg
and so on. Writes one row per photo, in the order of these numbers: id, and label, which is the probability of dog.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from functools import partial

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble
from pipeline.core.tool_paths import SUBMISSION, UNLABELLED_ARCHIVES


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


def main() -> None:
    archive = read_archive()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.inference.ensemble import InputPhoto, load_ensemble
    from pipeline.inference.submission import choose_clip, dog_of, numbered
    from pipeline.photos.source import PhotoSource

    import pandas as pd

    with PhotoSource(archive) as source:
        by_number = numbered(source)
        clip, loss, unclipped_loss = choose_clip()
        photos = [InputPhoto(photo.name, partial(source.read, photo)) for photo in by_number.values()]
        ensemble = load_ensemble()
        predictions = list(ensemble.predict(photos, keep_pixels=False, reject=False))

    dog = dog_of(ensemble.classes)
    labels = [0.5 if prediction.unreadable else prediction.ensemble[dog] for prediction in predictions]
    submission = pd.DataFrame({"id": list(by_number), "label": labels})
    submission["label"] = submission["label"].clip(clip, 1 - clip)
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


if __name__ == "__main__":
    run_stage(main)
