"""Paths of the files that stages read and write, relative to the project's root."""

from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")

CORRECTIONS = Path("data/corrections.txt")

CODE = Path("data/code")  # what `track_code` writes
PREPARED = Path("data/prepared")  # what `prepare` writes
SPLIT_TABLE = PREPARED / "split.csv"
CONTACT_SHEET = PREPARED / "contact_sheet.png"

MODELS = Path("models")  # what inference needs
NETWORK_MODELS = MODELS / "networks"  # a file per network: see model
COMBINATION = MODELS / "combination.json"
REJECTION = MODELS / "rejection.safetensors"

# JSON holds single numbers; DVC shows those in networks/NETWORK.json and ensemble.json. Tables are CSV: the folder says
# what they contain, and the file name what they are about: a network, all `networks`, or the `ensemble`.
METRICS = Path("metrics")
PREPARE_SUMMARY = METRICS / "prepare.json"
NETWORK_METRICS = METRICS / "networks"  # a file per network: see network_metrics
ENSEMBLE_METRICS = METRICS / "ensemble.json"
BEST_MEMBER = METRICS / "best_member.json"  # the best network by itself, and what the ensemble changes
NETWORK_PREDICTIONS = METRICS / "predictions/networks.csv"
ENSEMBLE_PREDICTIONS = METRICS / "predictions/ensemble.csv"
NETWORK_SCORES = METRICS / "scores/networks.csv"
ENSEMBLE_SCORES = METRICS / "scores/ensemble.csv"
NETWORK_CLASS_SCORES = METRICS / "class_scores/networks.csv"
ENSEMBLE_CLASS_SCORES = METRICS / "class_scores/ensemble.csv"
REJECTION_TABLE = METRICS / "rejection.csv"
HEAT_MAPS = METRICS / "heat_maps.safetensors"
REPORT = METRICS / "report.html"


def on_disk(network: str) -> str:
    """A network's name as files and stages have it: `timm-resnet18` for timm/resnet18.

    The names stay different, because neither torchvision nor timm has a hyphen in a network's name.
    """
    return network.replace("/", "-")


def from_disk(name: str) -> str:
    """The network of a file: the inverse of `on_disk`."""
    return name.replace("-", "/")


def train_stage(network: str) -> str:
    """The stage in dvc.yaml that trains a network."""
    return f"train_{on_disk(network)}"


def code_text(stage: str) -> Path:
    """The file in which `track_code` describes the code that a script in stages/ runs."""
    return CODE / f"{stage}.txt"


def packed_split(split: str) -> Path:
    """The packed photos of train, validation or test."""
    return PREPARED / f"{split}.safetensors"


def model(network: str) -> Path:
    return NETWORK_MODELS / f"{on_disk(network)}.safetensors"


def checkpoint_file(network: str) -> Path:
    return NETWORK_MODELS / f"{on_disk(network)}.checkpoint"


def learning_curve(network: str) -> Path:
    return METRICS / f"curves/{on_disk(network)}.csv"


def step_curve(network: str) -> Path:
    return METRICS / f"steps/{on_disk(network)}.csv"


def train_scores(network: str) -> Path:
    return METRICS / f"train/{on_disk(network)}.json"


def network_metrics(network: str) -> Path:
    """The numbers that `dvc metrics` shows of a network."""
    return NETWORK_METRICS / f"{on_disk(network)}.json"


def plot_file(kind: str) -> Path:
    return METRICS / f"plots/{kind}.png"


def confusion_file(name: str) -> Path:
    """The actual and predicted classes of a network or of the ensemble."""
    return METRICS / f"confusion/{on_disk(name)}.csv"


def roc_file(name: str) -> Path:
    """The ROC curve of a network or of the ensemble."""
    return METRICS / f"roc/{on_disk(name)}.csv"


def reliability_file(name: str) -> Path:
    """The reliability table of a network or of the ensemble."""
    return METRICS / f"reliability/{on_disk(name)}.csv"
