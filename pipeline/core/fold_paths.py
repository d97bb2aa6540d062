"""Paths of the files of cross-validation (tools/folds.py), relative to the project's root."""

from pathlib import Path

from pipeline.core.paths import on_disk

FOLDS_PIPELINE = Path("folds/dvc.yaml")  # its stages; the tool writes it
FOLDS_LOCK = Path("folds/dvc.lock")

FOLDS = Path("metrics/folds")
FOLD_MODELS = FOLDS / "models"  # what each model predicts: see fold_predictions
FOLDS_PREDICTIONS = FOLDS / "predictions.csv"
FOLDS_SCORES = FOLDS / "scores.csv"
FOLDS_PLOT = FOLDS / "folds.png"
FOLDS_METRICS = FOLDS / "networks"  # a file per network and for the ensemble: see folds_metrics


def fold_predictions(network: str, fold: int) -> Path:
    """The predictions of a network whose training left out a fold, for that fold and for its validation photos.

    Those of timm's networks are in a folder timm/, because a stage of a matrix cannot write its value differently.
    """
    return FOLD_MODELS / f"{network}-{fold}.csv"


def fold_scores(network: str, fold: int) -> Path:
    """What was kept of the training of a network that left out a fold."""
    return FOLD_MODELS / f"{network}-{fold}.json"


def folds_metrics(name: str) -> Path:
    """The numbers that `dvc metrics` shows of a network or of the ensemble."""
    return FOLDS_METRICS / f"{on_disk(name)}.json"
