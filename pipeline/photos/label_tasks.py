"""Choose the photos that a person should label, and describe them as tasks for Label Studio.

The formats are those of Label Studio 1.23: https://labelstud.io/guide/tasks and https://labelstud.io/guide/predictions
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipeline.core.errors import UserError
from pipeline.core.packed import read_packed
from pipeline.core.paths import packed_split
from pipeline.core.read_table import read_table

import pandas as pd

CHOICE, IMAGE = "choice", "image"  # names in the interface, and therefore of columns in exports
NOT_QUOTED = ("s3://", "gs://", "azure-blob://")  # storage in which Label Studio looks up the object's plain name
DOUBTFUL, UNCERTAIN = "doubtful label", "uncertain"
PROBABILITY = "probability_"  # tools/predict.py's columns


def choose_photos(table: Path, count: int) -> tuple[pd.DataFrame, list[str]]:
    """The photos to label and the classes: columns photo, label (now), predicted, probability (of that) and reason.

    They are, by the audit's table, up to `count` photos whose label is not the predicted one, the most doubtful first,
    and the `count` least certain of the others; by a table of predictions, the `count` least certain. Raises UserError
    if the table is neither.
    """
    photos = read_table(table, ["photo", "label"])
    if "predicted" in photos:
        classes = read_packed(packed_split("train")).description["classes"]
        photos["reason"] = UNCERTAIN
        doubtful = photos[photos["predicted"] != photos["label"]].head(count).assign(reason=DOUBTFUL)
        others = photos.drop(doubtful.index)
        return pd.concat([doubtful, _least_certain(others, count)]), classes
    columns = [name for name in map(str, photos) if name.startswith(PROBABILITY)]
    if not columns or "unreadable" not in photos:
        raise UserError(f"{table} is neither tools/audit.py's table nor tools/predict.py's CSV; run one of them again")
    readable = photos[photos["unreadable"] == ""]
    probability = readable[columns].astype(float).max(axis=1)
    photos = readable.assign(predicted=readable["label"], label="", probability=probability, reason=UNCERTAIN)
    return _least_certain(photos, count), [name.removeprefix(PROBABILITY) for name in columns]


def _least_certain(photos: pd.DataFrame, count: int) -> pd.DataFrame:
    return photos.sort_values("probability", kind="stable").head(count)


def tasks(photos: pd.DataFrame, prefix: str, model_version: str) -> list[dict]:
    """A task for each photo, whose URL is its name after `prefix`, with the predicted class as a pre-annotation.

    Its label of now is not called `label` here: as a column of an export, that would be taken for the new one.
    """
    is_plain = prefix.startswith(NOT_QUOTED)
    return [
        {
            "data": {
                IMAGE: prefix + (photo["photo"] if is_plain else quote(photo["photo"])),
                "photo": photo["photo"],
                "label_before": photo["label"],
                "reason": photo["reason"],
            },
            "predictions": [
                {
                    "model_version": model_version,
                    "score": photo["probability"],
                    "result": [_choice(photo["predicted"])],
                }
            ],
        }
        for photo in photos.to_dict("records")
    ]


def _choice(label: str) -> dict:
    return {"from_name": CHOICE, "to_name": IMAGE, "type": "choices", "value": {"choices": [label]}}


def interface(classes: Sequence[str]) -> str:
    """The labelling interface for one label per photo, as XML."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return f"""<View>
  <Image name="{IMAGE}" value="${IMAGE}"/>
  <Choices name="{CHOICE}" toName="{IMAGE}" choice="single" required="true" showInline="true">
{choices}
  </Choices>
</View>
"""
