"""What a project's stages have predicted, for comparison with its tools."""

from pathlib import Path

from pipeline.scores.evaluating import score_networks
from pipeline.scores.predictions import read_predictions, select_split
from pipeline.scores.scoring import write_scores
from tests.support.projects import Project

import pandas as pd
from scipy.special import softmax

CLOSE = 0.02  # between probabilities of a photo in different batches, where networks compute in bfloat16


def predicted_by(project: Project) -> dict[str, pd.DataFrame]:
    """For each network and `ensemble`: a row of probabilities for each test photo, a column for each class."""
    predicted = {}
    for name, rows in on_test(project, "predictions/networks").groupby("network", sort=False):
        logits = by_class(rows, "logit_")
        predicted[name] = pd.DataFrame(softmax(logits.to_numpy(), axis=1), logits.index, logits.columns)
    predicted["ensemble"] = by_class(on_test(project, "predictions/ensemble"), "probability_")
    return predicted


def write_network_scores(root: Path) -> None:
    """Write the scores of metrics/predictions/networks.csv, as evaluate does."""
    predictions = read_predictions(root / "metrics/predictions/networks.csv")
    validation, test = (select_split(predictions, split) for split in ("validation", "test"))
    (root / "metrics/scores").mkdir(exist_ok=True)
    scores = score_networks(validation, test, {name: {} for name in test.logits})
    write_scores(root / "metrics/scores/networks.csv", scores)


def on_test(project: Project, name: str) -> pd.DataFrame:
    table = pd.read_csv(project.root / f"metrics/{name}.csv", dtype={"photo": str})
    return table[table["split"] == "test"].set_index("photo")


def by_class(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """The columns whose names start with `prefix`, named without it."""
    return table.filter(regex=f"^{prefix}").rename(columns=lambda column: column.removeprefix(prefix))
