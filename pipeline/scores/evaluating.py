"""The networks' predictions as a table, and their scores."""

from collections.abc import Mapping

from pipeline.core.class_sizes import are_unequal, describe_few, describe_unequal, few_to_test_on
from pipeline.core.paths import NETWORK_CLASS_SCORES
from pipeline.scores.predictions import Predictions, logit_columns
from pipeline.scores.scoring import score, scores_table

import numpy as np
import pandas as pd
from scipy.special import softmax

FEW_LISTED = 5  # how many classes with few test photos are printed
LOGIT_DIGITS = 6  # decimal places; rounded before scoring, so that the table gives the same scores


def logits_table(name: str, photos: pd.DataFrame, classes: list[str], logits: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A network's logits: one row per photo of each split; `logits` has an array [N, classes] for each."""
    tables = []
    for split, values in logits.items():
        rows = photos.loc[photos["split"] == split, ["split", "photo", "label"]].assign(network=name)
        values = values.astype("float64").round(LOGIT_DIGITS)
        tables.append(rows.join(pd.DataFrame(values, rows.index, logit_columns(classes))))
    return pd.concat(tables)


def score_networks(
    validation: Predictions, test: Predictions, descriptions: Mapping[str, dict]
) -> dict[str, dict[str, dict]]:
    """The scores of each network on both splits.

    Its logits, times the temperature in the model's description, are those before calibration.
    """
    splits = {"validation": validation, "test": test}
    scores: dict[str, dict[str, dict]] = {}
    for name, description in descriptions.items():
        temperature = description.get("temperature", 1.0)
        scores[name] = {
            split: score(of.probabilities[name], of.labels, softmax(of.logits[name] * temperature, axis=1))
            for split, of in splits.items()
        }
    return scores


def print_scores(
    test: Predictions,
    scores: Mapping[str, dict[str, dict]],
    class_scores: dict[str, pd.DataFrame],
    trained_on: Mapping[str, int],
    to_balance: Mapping[str, str],
) -> None:
    """Print the scores on test, and what to know of classes that are unequal or have few photos.

    `trained_on` has the photos of each class in train, `to_balance` for each network what `describe_unequal` says.
    """
    print_unequal(trained_on, class_scores, to_balance)
    unequal = are_unequal(test.photos_by_class.values())
    print(scores_table({name: by_split["test"] for name, by_split in scores.items()}, unequal))
    print_few(test, class_scores)


def print_unequal(
    trained_on: Mapping[str, int], class_scores: dict[str, pd.DataFrame], to_balance: Mapping[str, str]
) -> None:
    """If the classes in train are very unequal, print what matters then."""
    for network, rows in class_scores.items():
        by_class = rows.set_index("class")
        photos, recall = by_class["photos"].to_dict(), by_class["recall"].to_dict()
        if text := describe_unequal(trained_on, photos, recall, to_balance[network]):
            print(f"{network} on test: {text}")


def print_few(test: Predictions, class_scores: dict[str, pd.DataFrame]) -> None:
    """Name the classes with few test photos, with the intervals of their recall."""
    if not (few := few_to_test_on(test.photos_by_class)):
        return
    shown = list(few)[:FEW_LISTED]
    table = pd.DataFrame({"class": shown, "photos": [few[name] for name in shown]})
    for network, rows in class_scores.items():
        recalls = rows.set_index("class").loc[shown, ["recall", "recall_low", "recall_high"]].to_numpy()
        table[f"recall of {network}"] = [f"{recall:.2f} ({low:.2f} to {high:.2f})" for recall, low, high in recalls]
    others = f"; all classes are in {NETWORK_CLASS_SCORES}" if len(few) > len(shown) else ""
    print(f"note: {describe_few(few)}; the 95 % intervals show how little their recall says{others}:")
    print(table.to_string(index=False))
