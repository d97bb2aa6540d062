"""All paths, relative to the project's root; each is defined only here."""

from pathlib import Path

CORRECTIONS = Path("data/corrections.txt")

PREPARED = Path("data/prepared")  # what `prepare` writes
SPLIT_TABLE = PREPARED / "split.csv"
CONTACT_SHEET = PREPARED / "contact_sheet.png"

MODELS = Path("models")

METRICS = Path("metrics")
PREPARE_SUMMARY = METRICS / "prepare.json"
PREDICTIONS = METRICS / "predictions.csv"
NETWORK_SCORES = METRICS / "evaluate.json"
ENSEMBLE_SCORES = METRICS / "ensemble.json"
ENSEMBLE_PREDICTIONS = METRICS / "ensemble_predictions.csv"
REPORT = METRICS / "report.html"


def packed_split(split: str) -> Path:
    """The packed photos of train, validation or test."""
    return PREPARED / f"{split}.safetensors"


def model(network: str) -> Path:
    return MODELS / f"{network}.safetensors"


def learning_curve(network: str) -> Path:
    return METRICS / f"curves/{network}.csv"


def train_scores(network: str) -> Path:
    return METRICS / f"train_{network}.json"
