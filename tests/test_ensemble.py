"""The ensemble stage, on predictions whose scores can be worked out by hand."""

import math
from pathlib import Path

import pandas as pd
import pytest
from projects import Project, error_line

# A row for each photo: its label, and the margin (logit of dog minus logit of cat) that each network gives it.
TEST_MARGINS = [
    ("dog", {"first": 3.0, "second": -1.0, "third": -1.0}),  # the mean says dog, the majority cat
    ("dog", {"first": 2.0, "second": 4.0, "third": 1.0}),
    ("cat", {"first": 1.0, "second": -3.0, "third": -2.0}),  # incorrect for the first only
    ("cat", {"first": -2.0, "second": -1.0, "third": 1.0}),
]
# The first network classifies all validation photos correctly, the second and third half of them.
VALIDATION_MARGINS = [
    ("dog", {"first": 1.0, "second": 0.2, "third": -0.2}),
    ("dog", {"first": 2.0, "second": -0.2, "third": 0.2}),
    ("cat", {"first": -1.0, "second": 0.2, "third": -0.2}),
    ("cat", {"first": -2.0, "second": -0.2, "third": 0.2}),
]


def write_predictions(root: Path, validation: list, test: list) -> None:
    rows = [
        {
            "split": split,
            "photo": f"{split}{number}.jpg",
            "label": label,
            "network": name,
            "logit_cat": -m,
            "logit_dog": 0,
        }
        for split, photos in (("validation", validation), ("test", test))
        for number, (label, margins) in enumerate(photos)
        for name, m in margins.items()
    ]
    (root / "metrics").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(root / "metrics/predictions.csv", index=False)


def combine(project: Project, method: str, validation: list = VALIDATION_MARGINS, test: list = TEST_MARGINS) -> dict:
    """metrics/ensemble.json, as the ensemble stage writes it from these margins."""
    write_predictions(project.root, validation, test)
    project.params["ensemble"]["method"] = method
    project.succeed("ensemble.py")
    return project.read_json("metrics/ensemble.json")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_ensemble_of_mean_logits_averages_margins_and_is_compared_with_the_best_member(project: Project) -> None:
    scores = combine(project, "mean_logits")

    means = [1 / 3, 7 / 3, -4 / 3, -2 / 3]  # all on the correct side
    losses = [-math.log(sigmoid(m if m > 0 else -m)) for m in means]
    assert (scores["accuracy"], scores["correct"], scores["total"]) == (1.0, 4, 4)
    assert scores["log_loss"] == pytest.approx(sum(losses) / 4, abs=1e-6)
    assert scores["roc_auc"] == 1.0
    assert scores["precision"] == scores["recall"] == {"cat": 1.0, "dog": 1.0}
    # Wilson's interval for 4 of 4: from n / (n + z²) to 1.
    assert (scores["accuracy_low"], scores["accuracy_high"]) == (pytest.approx(4 / (4 + 1.959964**2), abs=1e-5), 1.0)
    assert scores["best_member"] == "first"  # on validation; on test it is no better than the second
    assert (scores["put_right"], scores["put_wrong"], scores["mcnemar_p"]) == (1, 0, 1.0)
    assert (scores["method"], scores["members"]) == ("mean_logits", "first, second, third")


def test_ensemble_of_mean_probabilities_averages_each_networks_probabilities(project: Project) -> None:
    scores = combine(project, "mean_probabilities")

    means = [sum(map(sigmoid, margins.values())) / 3 for _, margins in TEST_MARGINS]
    correct = [(mean > 0.5) == (label == "dog") for mean, (label, _) in zip(means, TEST_MARGINS, strict=True)]
    losses = [-math.log(m if label == "dog" else 1 - m) for m, (label, _) in zip(means, TEST_MARGINS, strict=True)]
    assert scores["correct"] == sum(correct) == 3  # all but the first photo
    assert scores["log_loss"] == pytest.approx(sum(losses) / 4, abs=1e-6)


def test_ensemble_by_majority_vote_counts_votes(project: Project) -> None:
    scores = combine(project, "majority_vote")

    assert scores["correct"] == 3
    assert scores["recall"] == {"cat": 1.0, "dog": 0.5}  # two of three call the first dog a cat
    assert (scores["put_right"], scores["put_wrong"]) == (1, 1)


def test_ensemble_gives_a_tied_vote_to_the_surer_side(project: Project) -> None:
    tied = [("dog", {"first": 3.0, "second": -1.0}), ("cat", {"first": 1.0, "second": -3.0})]
    scores = combine(project, "majority_vote", validation=tied, test=tied)
    assert scores["correct"] == 2


def test_ensemble_fits_weights_on_validation_only(project: Project) -> None:
    scores = combine(project, "fitted_weights")
    assert list(scores["weights"]) == ["first", "second", "third"]
    assert scores["weights"]["first"] > 10 * abs(scores["weights"]["second"])  # the only one that can tell them apart
    assert scores["correct"] == 3  # the same as the first network
    assert "validation_accuracy" not in scores  # the weights have seen these photos
    logits = [sum(scores["weights"][n] * m for n, m in margins.items()) for _, margins in TEST_MARGINS]
    losses = [
        math.log1p(math.exp(-(scores["intercept"] + x) * (1 if label == "dog" else -1)))
        for x, (label, _) in zip(logits, TEST_MARGINS, strict=True)
    ]
    assert scores["log_loss"] == pytest.approx(sum(losses) / 4, abs=1e-5)

    swapped = [({"cat": "dog", "dog": "cat"}[label], margins) for label, margins in TEST_MARGINS]
    assert combine(project, "fitted_weights", test=swapped)["weights"] == scores["weights"]
    turned = [({"cat": "dog", "dog": "cat"}[label], margins) for label, margins in VALIDATION_MARGINS]
    assert combine(project, "fitted_weights", validation=turned)["weights"] != scores["weights"]


def test_ensemble_compares_changed_photos_with_mcnemars_exact_test(project: Project) -> None:
    labels = ["dog", "cat"] * 10
    sign = {"dog": 1.0, "cat": -1.0}
    validation = [(label, {"first": sign[label], "second": -sign[label]}) for label in labels]
    # The first network is incorrect on 6 photos that the surer second corrects, and correct on one that it breaks.
    test = [
        (label, {"first": (-1 if n < 6 else 1) * sign[label], "second": (-3 if n == 6 else 3) * sign[label]})
        for n, label in enumerate(labels)
    ]
    scores = combine(project, "mean_logits", validation, test)
    assert scores["best_member"] == "first"
    assert (scores["put_right"], scores["put_wrong"]) == (6, 1)
    assert scores["mcnemar_p"] == 2 * (1 + 7) / 2**7
    *table, comparison = project.last_run.stdout.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [
        ["first", "0.700000"],
        ["second", "0.950000"],
        ["ensemble", "(mean_logits)"],
    ]
    assert comparison == (
        "compared with first, its best member on validation: 6 mistakes corrected, 1 added (McNemar's exact test: "
        "p = 0.125)"
    )


def test_ensemble_without_predictions_says_what_writes_them(project: Project) -> None:
    project.write_params()
    assert error_line(project.run("ensemble.py")) == (
        "metrics/predictions.csv does not exist; run `dvc repro` to create it"
    )


def test_ensemble_writes_the_probabilities_that_it_scores(project: Project) -> None:
    scores = combine(project, "mean_logits")
    table = pd.read_csv(project.root / "metrics/ensemble_predictions.csv")
    assert table["split"].tolist() == ["validation"] * 4 + ["test"] * 4
    test = table[table["split"] == "test"].sort_values("photo")
    assert test["label"].tolist() == [label for label, _ in TEST_MARGINS]
    means = [sum(margins.values()) / 3 for _, margins in TEST_MARGINS]
    assert test["probability_of_dog"].tolist() == pytest.approx([sigmoid(m) for m in means], abs=1e-8)
    assert sum((test["probability_of_dog"] > 0.5) == (test["label"] == "dog")) == scores["correct"]
