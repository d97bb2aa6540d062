"""Rank photos by how likely their label is wrong, using out-of-fold classifiers.

Reads data/prepared/; writes metrics/audit.csv (one row per photo, the likeliest first) and metrics/audit.html (a page
with the first 100). The trained models have learned the labels of train, including wrong ones. The audit therefore uses
the pretrained weights to turn photos into features, and judges each photo by a logistic regression fitted on others.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import time
import warnings
from collections.abc import Iterator

from pipeline.core import SPLITS
from pipeline.core.all_params import Params
from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write
from pipeline.core.paths import SPLIT_TABLE, packed_split
from pipeline.core.process import check_first, extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.tool_paths import AUDIT_PAGE, AUDIT_TABLE
from pipeline.results import require_results


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if a prepared file is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_results(*map(packed_split, SPLITS), SPLIT_TABLE)
    return params


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.core.split_table import read_split_table
from pipeline.networks.building import build_network, check_image_size
from pipeline.networks.compute import set_up
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.networks.predicting import predict_features
from pipeline.pages.rendering import most_probable, render, thumbnail
from pipeline.scores.predictions import label_numbers

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

with extra_packages("audit"):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

FOLDS, FOLDS_SEED = 5, 1
REGULARISATION = 0.001  # scikit-learn's C; strong, so that wrong labels have little influence
SHOWN = 100  # on the page
DIGITS = 6  # decimal places of probabilities


def main() -> None:
    params = read_inputs()
    device, dtype = set_up(params.device, params.precision, params.threads)
    start = time.perf_counter()
    splits = {split: open_split(packed_split(split), device) for split in SPLITS}
    classes = splits["train"].description["classes"]
    photos = read_photos()
    labels = label_numbers(photos["label"], classes)
    features = np.hstack([features_of(name, splits, params, dtype) for name in params.networks])
    probabilities = judge(features, labels, photos["group"])
    photos["probability_of_label"] = get_label_quality_scores(labels, probabilities).round(DIGITS)
    estimated_wrong = int(find_label_issues(labels, probabilities, n_jobs=1).sum())
    ranked = photos.sort_values("probability_of_label", kind="stable")
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    page = render(
        "audit.html.jinja",
        photos=list(show(ranked.head(SHOWN), probabilities, classes, splits)),
        total=len(ranked),
        estimated_wrong=estimated_wrong,
        networks=list(params.networks),
    )
    with atomic_write() as write_to:
        columns = ["rank", "photo", "label", "probability_of_label", "split"]
        ranked[columns].to_csv(write_to(AUDIT_TABLE), index=False)
        write_to(AUDIT_PAGE).write_text(page, encoding="utf-8")
    seconds = time.perf_counter() - start
    print(f"{len(ranked)} photos, {estimated_wrong} labels estimated to be wrong; {seconds:.0f} s; see {AUDIT_PAGE}")


def read_photos() -> pd.DataFrame:
    """The photos of all splits in the row order of their packed files.

    `row` is the position in the split; copies have the same `group`.
    """
    table = read_split_table()
    photos = pd.concat([table[table["split"] == split] for split in SPLITS], ignore_index=True)
    photos["row"] = photos.groupby("split").cumcount()
    photos["group"] = photos["copy_of"].where(photos["copy_of"] != "", photos["photo"])
    return photos


def features_of(name: str, splits: dict[str, PackedSplit], params: Params, dtype: torch.dtype) -> np.ndarray:
    """The input of the network's output layer with its pretrained weights: [photos, features]."""
    weights = params.networks[name].weights
    if weights == "none":
        print(
            f"warning: networks.{name}.weights is none; features from random weights say little about labels",
            file=sys.stderr,
        )
    network = build_network(name, weights, classes=2, head_width=None, dropout=0, seed=0)
    check_image_size(network, name, splits["train"].description["image_size"], "prepare.image_size")
    network.to(splits["train"].device, memory_format=torch.channels_last)
    features = [predict_features(network, packed, dtype, f"{name} {split}") for split, packed in splits.items()]
    return torch.cat(features).numpy()


def judge(features: np.ndarray, labels: np.ndarray, groups: pd.Series) -> np.ndarray:
    """Probabilities [photos, classes], from a classifier that saw neither the photo nor another one of its group.

    Every class has a group of copies in each split, and is therefore in every fold's training part.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=1000))
    largest_class = int(groups.groupby(labels).nunique().max())
    folds = StratifiedGroupKFold(min(FOLDS, largest_class), shuffle=True, random_state=FOLDS_SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # it has fewer photos than there are folds
        return cross_val_predict(classifier, features, labels, groups=groups, cv=folds, method="predict_proba")


def show(
    photos: pd.DataFrame, probabilities: np.ndarray, classes: list[str], splits: dict[str, PackedSplit]
) -> Iterator[dict]:
    """What the page shows for each photo; the index of `photos` is its row in `probabilities`."""
    for index, photo in zip(photos.index, photos.to_dict("records"), strict=True):
        by_class = dict(zip(classes, probabilities[index].tolist(), strict=True))
        yield {
            **photo,
            "probabilities": by_class,
            "other": next(name for name in most_probable(by_class, 2) if name != photo["label"]),
            "image": thumbnail(splits[photo["split"]].pixels[photo["row"]].cpu().numpy()),
        }


if __name__ == "__main__":
    run_stage(main)
