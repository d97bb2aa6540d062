"""Judge each photo's label by a classifier fitted on other photos' features, from the pretrained networks."""

import sys
import warnings
from collections.abc import Iterator

from pipeline.core import SPLITS
from pipeline.core.all_params import Params
from pipeline.core.paths import SPLIT_TABLE
from pipeline.core.read_table import require_columns
from pipeline.core.split_table import read_split_table
from pipeline.networks.building import build_network, check_image_size, normalisation_of
from pipeline.networks.compute import to_device
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.predicting import predict_features
from pipeline.pages.rendering import most_probable, thumbnail

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS, FOLDS_SEED = 5, 1
REGULARISATION = 0.001  # scikit-learn's C; strong, so that wrong labels have little influence


def read_photos() -> pd.DataFrame:
    """The photos of all splits in the row order of their packed files.

    `width` and `height` are in pixels; `row` is the position in the split; copies have the same `group`.
    """
    table = read_split_table()
    require_columns(str(SPLIT_TABLE), ["width", "height"], table)
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
    to_device(network, splits["train"].device)
    features = []
    for split, packed in splits.items():
        images = packed.normalised(normalisation_of(name, weights))
        features.append(predict_features(network, images, dtype, f"{name} {split}"))
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
    for index, photo in zip(photos.index, thumbnails(photos, splits), strict=True):
        by_class = dict(zip(classes, probabilities[index].tolist(), strict=True))
        other = next(name for name in most_probable(by_class, 2) if name != photo["label"])
        yield {**photo, "probabilities": by_class, "other": other}


def thumbnails(photos: pd.DataFrame, splits: dict[str, PackedSplit]) -> Iterator[dict]:
    """The columns of each photo, and its `image` as a data URI."""
    for photo in photos.to_dict("records"):
        yield {**photo, "image": thumbnail(splits[photo["split"]].pixels[photo["row"]].cpu().numpy())}
