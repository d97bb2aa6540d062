"""Predictions as text: a table for people, CSV or JSON."""

import json

from pipeline.inference.ensemble import Prediction
from pipeline.scores.predictions import probability_columns

import pandas as pd

DIGITS = 6  # decimal places of probabilities in CSV and JSON


def as_text(predictions: list[Prediction], members: list[str]) -> str:
    """A table with one line per photo: its name, the most probable class, and the probabilities of that class."""
    width = max(len(prediction.photo) for prediction in predictions)
    labels = {prediction.photo: label_text(prediction) for prediction in predictions}
    label_width = max(map(len, ("label", *labels.values())))
    columns = ["probability", *members]
    widths = [max(len(name), 6) for name in columns]
    lines = [f"{'photo':{width}}  {'label':{label_width}}"]
    lines[0] += "".join(f"  {name:>{size}}" for name, size in zip(columns, widths, strict=True))
    for prediction in predictions:
        line = f"{prediction.photo:{width}}  {prediction.unreadable or labels[prediction.photo]:{label_width}}"
        if not prediction.unreadable:
            values = [prediction.confidence, *(prediction.members[name][prediction.label] for name in members)]
            line += "".join(f"  {value:>{size}.4f}" for value, size in zip(values, widths, strict=True))
        lines.append(line)
    return "\n".join(lines)


def label_text(prediction: Prediction) -> str:
    """The label, or `none of these (label)` for a photo that seems to show none of the classes."""
    return f"none of these ({prediction.label})" if prediction.rejected else prediction.label


def as_csv(predictions: list[Prediction], classes: list[str], members: list[str], can_reject: bool) -> str:
    """Columns photo, label, probability_<class>, <member>_probability_<class>, and unreadable (the reason).

    With `can_reject` also none_of_these, True for a photo that seems to show none of the classes.
    """
    of_ensemble = probability_columns(classes)
    columns = [*of_ensemble, *(f"{name}_{column}" for name in members for column in of_ensemble)]
    rows = []
    for prediction in predictions:
        by_class = (prediction.ensemble, *prediction.members.values())  # empty if the photo is unreadable
        values = [probability for probabilities in by_class for probability in probabilities.values()]
        probabilities = dict(zip(columns, values, strict=False))
        rows.append(
            {"photo": prediction.photo, "label": prediction.label, **probabilities, "unreadable": prediction.unreadable}
        )
        if not prediction.unreadable:
            rows[-1]["none_of_these"] = prediction.rejected
    rejected = ["none_of_these"] if can_reject else []
    table = pd.DataFrame(rows, columns=["photo", "label", *rejected, *columns, "unreadable"])
    return table.to_csv(index=False, float_format=f"%.{DIGITS}f")


def as_json(predictions: list[Prediction], can_reject: bool) -> str:
    """A list of objects with photo and either label, probabilities and members, or unreadable.

    With `can_reject` also none_of_these, true for a photo that seems to show none of the classes.
    """
    return json.dumps([as_record(prediction, can_reject) for prediction in predictions], indent=2, ensure_ascii=False)


def as_record(prediction: Prediction, can_reject: bool) -> dict:
    """A photo's object in `as_json`."""
    if prediction.unreadable:
        return {"photo": prediction.photo, "unreadable": prediction.unreadable}
    return {
        "photo": prediction.photo,
        "label": prediction.label,
        **({"none_of_these": prediction.rejected} if can_reject else {}),
        "probabilities": rounded(prediction.ensemble),
        "members": {name: rounded(probabilities) for name, probabilities in prediction.members.items()},
    }


def rounded(probabilities: dict[str, float]) -> dict[str, float]:
    return {label: round(probability, DIGITS) for label, probability in probabilities.items()}
