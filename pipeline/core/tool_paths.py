"""Paths of the files that only tools read and write, relative to the project's root."""

from pathlib import Path

from pipeline.core.paths import METRICS, on_disk

RECIPES = Path("recipes")

RESULTS = Path("results")  # records of finished runs, from which the tables in README.md and docs/ are made
SPEED_RECORD = RESULTS / "speed.json"  # of bench/compare.py

RAW = Path("data/raw")
ARCHIVE = RAW / "train.zip"  # what tools/download.py writes
UNLABELLED_ARCHIVES = (RAW / "test1.zip", RAW / "test.zip")  # of Kaggle's competitions, for tools/submission.py

AUDIT_TABLE = METRICS / "audit.csv"
AUDIT_PAGE = METRICS / "audit.html"
COMPARE_PAGE = METRICS / "compare.html"
COMPARE_MARKDOWN = METRICS / "compare.md"
COMPARE_PLOTS = METRICS / "compare"  # which it links to

LABEL_STUDIO = Path("label_studio")  # what tools/label_studio.py writes
LABEL_TASKS = LABEL_STUDIO / "tasks.json"
LABEL_INTERFACE = LABEL_STUDIO / "interface.xml"

EXPORT = Path("export")
SUBMISSION = Path("submission.csv")

SEARCH_SPACE = Path("search.yaml")
SEARCH = Path(".search")  # what tools/search.py writes: its state, the trials' output and the plots


def graph_file(name: str) -> Path:
    """The ONNX graph of a network or of the ensemble."""
    return EXPORT / f"{on_disk(name)}.onnx"
