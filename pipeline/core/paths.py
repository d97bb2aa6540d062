"""Paths of the files that stages read and write, relative to the project's root."""

from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")

CORRECTIONS = Path("data/corrections.txt")

CODE = Path("data/code")  # what `track_code` writes
PREPARED = Path("data/prepared")  # what `prepare` writes
SPLIT_TABLE = PREPARED / "split.csv"
CONTACT_SHEET = PREPARED / "contact_sheet.png"

MODELS = Path("models")

METRICS = Path("metrics")
PREPARE_SUMMARY = METRICS / "prepare.json"
PREDICTIONS = METRICS / "predictions.csv"
NETWORK_METRICS = METRICS / "networks"  # a file per network: see network_metrics
NETWORK_SCORES = METRICS / "scores.csv"
NETWORK_CLASS_SCORES = METRICS / "class_scores.csv"
COMBINATION = METRICS / "combination.json"
ENSEMBLE_METRICS = METRICS / "ensemble.json"
ENSEMBLE_SCORES = METRICS / "ensemble_scores.csv"
ENSEMBLE_CLASS_SCORES = METRICS / "ensemble_class_scores.csv"
ENSEMBLE_PREDICTIONS = METRICS / "ensemble_predictions.csv"
ENSEMBLE_CONFUSION = METRICS / "confusion_ensemble.csv"
REJECTION = METRICS / "rejection.safetensors"
REJECTION_TABLE = METRICS / "rejection.csv"
HEAT_MAPS = METRICS / "heat_maps.safetensors"
REPORT = METRICS / "report.html"


def code_text(stage: str) -> Path:
    """The file in which `track_code` describes the code that a script in stages/ runs."""
    return CODE / f"{stage}.txt"


def packed_split(split: str) -> Path:
    """The packed photos of train, validation or test."""
    return PREPARED / f"{split}.safetensors"


def model(network: str) -> Path:
    return MODELS / f"{network}.safetensors"


def checkpoint_file(network: str) -> Path:
    return MODELS / f"{network}.checkpoint"


def learning_curve(network: str) -> Path:
    return METRICS / f"curves/{network}.csv"


def train_scores(network: str) -> Path:
    return METRICS / f"train_{network}.json"


def network_metrics(network: str) -> Path:
    """The numbers that `dvc metrics` shows of a network."""
    return NETWORK_METRICS / f"{network}.json"


def confusion_file(network: str) -> Path:
    return METRICS / f"confusion/{network}.csv"


def plot_file(kind: str) -> Path:
    return METRICS / f"plots/{kind}.png"


def roc_file(name: str) -> Path:
    """The ROC curve of a network or of the ensemble."""
    return METRICS / f"roc/{name}.csv"


def reliability_file(name: str) -> Path:
    """The reliability table of a network or of the ensemble."""
    return METRICS / f"reliability/{name}.csv"
