"""Rank all photos by how doubtful their labels are, as networks see it that were never shown these labels.

Usage, from the project's root: python stages/audit.py
Reads data/prepared/; writes metrics/audit.csv (a row for each photo, the most doubtful first) and metrics/audit.html
(the first of them, to look at). The trained networks have learned the labels of train, wrong ones too; so pretrained
weights turn photos into features, and a logistic regression on these judges each photo after it has seen others alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import time
from collections.abc import Iterator

from catsdogs import CLASSES, SPLITS
from catsdogs.compute import choose_device, choose_precision, keep_freed_memory, make_deterministic, predict_logits
from catsdogs.dataset import PackedSplit, open_split
from catsdogs.files import PREPARED, existing, written_whole
from catsdogs.networks import Head, build_network, check_image_size, fold_batchnorm
from catsdogs.pages import render, thumbnail
from catsdogs.params import Params, read_params
from catsdogs.process import extra_packages, run_stage
from catsdogs.scores import label_numbers

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

with extra_packages("audit"):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

FOLDS, FOLDS_SEED = 5, 1
REGULARISATION = 0.001  # C of scikit-learn: strong, so that a wrong label has little say in what is learned from it
SHOWN = 100  # on the page
DIGITS = 6  # of probabilities


def main() -> None:
    params = read_params()
    make_deterministic()
    keep_freed_memory()
    device = choose_device()
    dtype = choose_precision(params.precision, device)
    start = time.perf_counter()
    splits = {split: open_split(PREPARED / f"{split}.safetensors", device) for split in SPLITS}
    photos = read_photos()
    features = np.hstack([features_of(name, splits, params, dtype) for name in params.networks])
    probabilities = judge(features, photos)
    photos["probability_of_label"] = get_label_quality_scores(label_numbers(photos), probabilities).round(DIGITS)
    held_wrong = int(find_label_issues(label_numbers(photos), probabilities, n_jobs=1).sum())
    ranked = photos.sort_values("probability_of_label", kind="stable")
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    page = render(
        "audit.html.jinja",
        photos=list(show(ranked.head(SHOWN), splits)),
        total=len(ranked),
        held_wrong=held_wrong,
        networks=list(params.networks),
    )
    with written_whole() as write_to:
        columns = ["rank", "photo", "label", "probability_of_label", "split"]
        ranked[columns].to_csv(write_to(Path("metrics/audit.csv")), index=False)
        write_to(Path("metrics/audit.html")).write_text(page, encoding="utf-8")
    seconds = time.perf_counter() - start
    print(f"{len(ranked)} photos, {held_wrong} labels held to be wrong; {seconds:.0f} s; look at metrics/audit.html")


def read_photos() -> pd.DataFrame:
    """The photos that a split holds, in the order of their pixels, and in `row` their place there."""
    table = pd.read_csv(existing(PREPARED / "split.csv"), keep_default_na=False)
    photos = pd.concat([table[table["split"] == split] for split in SPLITS], ignore_index=True)
    photos["row"] = photos.groupby("split").cumcount()
    return photos


def features_of(name: str, splits: dict[str, PackedSplit], params: Params, dtype: torch.dtype) -> np.ndarray:
    """What the network hands to its output layer, untrained but for its pretrained weights: [photos, features]."""
    weights = params.networks[name].weights
    if weights == "none":
        print(f"warning: networks.{name}.weights is none: random features, which say little of labels", file=sys.stderr)
    network = build_network(name, weights, head_width=0, dropout=0, seed=0)
    check_image_size(network, name, splits["train"].description["image_size"], "prepare.image_size")
    [head] = [path for path, module in network.named_modules() if isinstance(module, Head)]
    network.set_submodule(head, nn.Identity())
    network = fold_batchnorm(network).to(splits["train"].device, memory_format=torch.channels_last)
    features = [predict_logits(network, packed, dtype, f"{name} {split}") for split, packed in splits.items()]
    return torch.cat(features).numpy()


def judge(features: np.ndarray, photos: pd.DataFrame) -> np.ndarray:
    """Probabilities of cat and dog [photos, 2], each by a classifier that saw neither the photo nor an equal one."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=1000))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=FOLDS_SEED)
    labels, groups = label_numbers(photos), photos["sha256"]
    return cross_val_predict(classifier, features, labels, groups=groups, cv=folds, method="predict_proba")


def show(photos: pd.DataFrame, splits: dict[str, PackedSplit]) -> Iterator[dict]:
    """What the page shows of each photo."""
    for photo in photos.to_dict("records"):
        is_dog = photo["label"] == CLASSES[1]
        yield {
            **photo,
            "other": CLASSES[not is_dog],
            "probability_of_dog": photo["probability_of_label"] if is_dog else 1 - photo["probability_of_label"],
            "picture": thumbnail(splits[photo["split"]].pixels[photo["row"]].cpu().numpy()),
        }


if __name__ == "__main__":
    run_stage(main)
