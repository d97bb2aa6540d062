"""The tables in README.md and docs/, made from the records in results/."""

import json
import math
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.paths import train_stage
from pipeline.core.tool_paths import RESULTS, SPEED_RECORD
from pipeline.editing.recipes import DEFAULT

START, END = "<!-- table: ", "<!-- end of table -->"
TABLE = re.compile(rf"{START}(\S+) -->\n.*?{END}", re.DOTALL)
WIDTH = 120  # of a page's lines
NO_RUNS = "No run is recorded yet."
ENSEMBLE = "ensemble"
COLUMNS = OURS, NOTEBOOK, FASTAI, TORCHVISION, LIMIT = "pipeline", "notebook", "fastai", "torchvision", "limit"

# What the records must have.
RUN_KEYS = (
    "seeds",
    "commit",
    "code",
    "recipe",
    "photos",
    "weights",
    "combined_by",
    "scores",
    "made_with",
    "seconds",
    "note",
)
SPEED_KEYS = (
    "commit",
    "photos",
    "split",
    "epochs",
    "batch_size",
    "rounds",
    "weights",
    "cores",
    "made_with",
    "note",
    "measured",
)

Record = dict[str, Any]  # the content of a file that tools/record.py or bench/compare.py wrote
Lines = Sequence[Sequence[str]]  # the cells of a table, line by line, the headings first


# ---- pages ----


def find_pages() -> list[Path]:
    """README.md and docs/. Raises UserError outside of the project's root."""
    if not Path("README.md").exists():
        raise UserError(f"README.md does not exist in {Path.cwd()}; run this from the project's root")
    return [Path("README.md"), *sorted(Path("docs").glob("*.md"))]


def fill(page: Path) -> str:
    """The text of a page, with its tables made from results/. Raises UserError if a table is unknown or has no end."""

    def make(match: re.Match) -> str:
        if match[1] not in TABLES:
            raise UserError(f"{page}: there is no table {match[1]}; expected one of {', '.join(TABLES)}")
        return f"{START}{match[1]} -->\n{TABLES[match[1]]()}\n{END}"

    text = page.read_text(encoding="utf-8")
    filled, count = TABLE.subn(make, text)
    if not count == text.count(START) == text.count(END):
        raise UserError(f"{page}: a table has no start or no end; expected {START}NAME --> and {END}")
    return filled


def in_markdown(lines: Lines) -> str:
    headings, *others = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *others))


def paragraph(*sentences: str) -> str:
    """The sentences in lines as long as those of the pages."""
    text = " ".join(filter(None, sentences))
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def read_record(path: Path, keys: Sequence[str]) -> Record:
    """A file in results/. Raises UserError if it is not JSON, or lacks one of these keys."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it, or record the run again") from None
    if missing := [key for key in keys if key not in record]:
        raise UserError(
            f"{path} lacks {missing[0]}: it was written by something else, or another version; record the run again"
        )
    return record


# ---- accuracy ----


@dataclass(frozen=True)
class Row:
    """Recorded runs that differ in their seeds only, in the order of these."""

    runs: list[Record]

    def __getitem__(self, key: str) -> Any:
        """What is the same in all runs."""
        return self.runs[0][key]

    @property
    def photos(self) -> str:
        return self["photos"]["name"]

    @property
    def train(self) -> str:
        """The number of photos in train."""
        return span(run["photos"]["train"] for run in self.runs)

    @property
    def networks(self) -> list[str]:
        """The networks and, if there are several, the ensemble."""
        return list(self["scores"])

    @property
    def splits(self) -> str:
        """The fingerprints of the splits, shortened."""
        return ", ".join(dict.fromkeys(run["photos"]["split_id"][:7] for run in self.runs))

    @property
    def seeds(self) -> str:
        seeds = ", ".join(str(run["seeds"]["train"]) for run in self.runs)
        splits = len(self.splits.split(", "))
        if splits == 1:
            return seeds
        return f"{seeds}, each with its own split" if splits == len(self.runs) else f"{seeds}, on {splits} splits"

    def scores(self, network: str, split: str, key: str) -> list[Any]:
        """A score in each run; empty for an ensemble that was fitted to this split."""
        return [run["scores"][network][split][key] for run in self.runs if split in run["scores"][network]]

    def accuracy(self, network: str, split: str) -> str:
        """The mean over the runs: `0.8678`."""
        pairs = zip(self.scores(network, split, "correct"), self.scores(network, split, "photos"), strict=True)
        return mean([correct / photos for correct, photos in pairs], "{:.4f}")

    def training_time(self, network: str) -> str:
        """The mean over the runs in seconds, if one was timed."""
        stage = train_stage(network)
        return mean([run["seconds"][stage] for run in self.runs if stage in run["seconds"]], "{:,.0f}")


def read_rows() -> list[Row]:
    """The recorded runs: the photos of which there are most first, and the default recipe before the others."""
    groups: dict[str, list[Record]] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        record = read_record(path, RUN_KEYS)
        groups.setdefault(json.dumps(what_is_averaged(record)), []).append(record)
    rows = [Row(sorted(runs, key=lambda run: run["seeds"]["train"])) for runs in groups.values()]
    return sorted(rows, key=lambda row: (-row["photos"]["train"], row.photos, row["recipe"] != DEFAULT, row["recipe"]))


def what_is_averaged(record: Record) -> list[Any]:
    """What runs must have in common to be averaged: everything but the seeds and what follows from them."""
    photos = [record["photos"][key] for key in ("name", "md5", "split")]
    keys = ("recipe", "code", "weights", "combined_by", "note")
    return [*photos, describe_hardware(record), *(record[key] for key in keys)]


def describe_hardware(record: Record) -> str:
    """`AMD EPYC, AVX512, 2 threads, bfloat16, PyTorch 2.9.0`."""
    made_with = record["made_with"]
    threads = f"{made_with['threads']} thread{'' if made_with['threads'] == 1 else 's'}"
    return f"{made_with['hardware']}, {threads}, {made_with['precision']}, PyTorch {made_with['torch']}"


def settings(rows: list[Row]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What the rows were made with, by heading: what all have in common, and a column for each difference."""
    first_commit: dict[str, str] = {}
    for run in (run for row in rows for run in row.runs):
        first_commit.setdefault(run["code"], run["commit"][:7])
    cells = {
        "code": [first_commit[row["code"]] for row in rows],
        "hardware": [describe_hardware(row.runs[0]) for row in rows],
        "weights": [", ".join(weights["file"] for weights in row["weights"].values()) for row in rows],
        "note": [row["note"] for row in rows],
    }
    if any(ENSEMBLE in row.networks for row in rows):
        cells["ensemble by"] = [row["combined_by"] for row in rows]
    different = {heading: texts for heading, texts in cells.items() if len(set(texts)) > 1}
    if differ_with_same_photos(rows, splits := [row.splits for row in rows]):
        different["split"] = splits
    return {heading: texts[0] for heading, texts in cells.items() if heading not in different}, different


def differ_with_same_photos(rows: list[Row], texts: list[str]) -> bool:
    """Whether rows with the same photos and sizes of splits have different texts."""
    groups: dict[str, set[str]] = {}
    for row, text in zip(rows, texts, strict=True):
        groups.setdefault(json.dumps([row.photos, row["photos"]["split"]]), set()).add(text)
    return any(len(group) > 1 for group in groups.values())


def accuracy_table() -> str:
    """A line for each collection of photos and recipe.

    Of what the runs were made with, only notes and what tells lines of the same photos apart have a column; all of it
    is in `network_table`.
    """
    if not (rows := read_rows()):
        return NO_RUNS
    common, columns = settings(rows)
    columns = {
        heading: texts
        for heading, texts in columns.items()
        if heading == "note" or differ_with_same_photos(rows, texts)
    }
    weights = dict.fromkeys(weights["file"] for row in rows for weights in row["weights"].values())
    networks = sorted({name: None for row in rows for name in row.networks}, key=lambda name: name == ENSEMBLE)
    lines = [["photos", "in train", "recipe", *networks, "seeds", *columns]]
    for number, row in enumerate(rows):
        cells = [correct_answers(row, name) if name in row.networks else "" for name in networks]
        different = [texts[number] for texts in columns.values()]
        lines.append([row.photos, row.train, row["recipe"], *cells, row.seeds, *different])
    explanation = "Accuracy on test photos: the mean of the seeds (the lowest and highest number of correct answers)."
    files = f"Weights: {', '.join(weights)}."
    return f"{in_markdown(lines)}\n\n{paragraph(explanation, files, common.get('note', ''))}"


def correct_answers(row: Row, network: str) -> str:
    """`0.8678 (101 to 107 of 121)`."""
    correct, photos = (span(row.scores(network, "test", key)) for key in ("correct", "photos"))
    return f"{row.accuracy(network, 'test')} ({correct} of {photos})"


def network_table() -> str:
    """A line for each collection of photos, recipe and network."""
    if not (rows := read_rows()):
        return NO_RUNS
    common, columns = settings(rows)
    lines = [
        ["photos", "in train", "recipe", "network", "seeds", "correct on test", "log loss", "accuracy on validation"]
    ]
    is_timed = any(row.training_time(name) for row in rows for name in row.networks)
    lines[0] += ["kept epoch", *(["training, s"] if is_timed else []), *columns]
    for number, row in enumerate(rows):
        for name in row.networks:
            correct = ", ".join(f"{count:,}" for count in row.scores(name, "test", "correct"))
            kept = "" if name == ENSEMBLE else ", ".join(str(run["scores"][name]["kept_epoch"]) for run in row.runs)
            lines.append(
                [
                    *(row.photos, row.train, row["recipe"], name, row.seeds),
                    f"{correct} of {span(row.scores(name, 'test', 'photos'))}",
                    mean(row.scores(name, "test", "log_loss"), "{:.4f}"),
                    row.accuracy(name, "validation"),
                    kept,
                    *([row.training_time(name)] if is_timed else []),
                    *(texts[number] for texts in columns.values()),
                ]
            )
    note = common.pop("note", "")
    sentences = (f"{heading.capitalize()}: {text}." for heading, text in common.items())
    return f"{in_markdown(lines)}\n\n{paragraph(*sentences, note)}"


# ---- speed ----


def speed_table() -> str:
    """What bench/compare.py measured. Raises UserError if its code was not committed."""
    if not SPEED_RECORD.exists():
        return "No benchmark is recorded yet."
    record = read_record(SPEED_RECORD, SPEED_KEYS)
    if not record["commit"] or record["commit"].endswith("+"):
        raise UserError(
            f"{SPEED_RECORD} was measured with code that is not committed; commit it and run `make bench` again"
        )
    code = f"Code: commit {record['commit'][:7]}."
    return f"{in_markdown(speed_lines(record))}\n\n{paragraph(code, describe_benchmark(record), record['note'])}"


def describe_benchmark(record: Record) -> str:
    """`960/320/320 photos (synthetic), epochs: 1, ...`."""
    split = "/".join(map(str, record["split"]))
    return (
        f"{split} photos ({record['photos']}), epochs: {record['epochs']}, batch size {record['batch_size']}, "
        f"rounds: {record['rounds']}; weights: {', '.join(dict.fromkeys(record['weights'].values()))}; "
        f"{describe_hardware(record)}, {record['cores']} cores."
    )


def speed_lines(record: Record) -> list[list[str]]:
    """Medians (means for accuracy), and in parentheses the pipeline's value divided by each other one.

    In `measured`, a value is null if its goal was not reached.
    """
    measured = record["measured"]
    columns = [who for who in COLUMNS if any(who in values for values in measured.values())]
    lines = [["", *columns]]
    for what, values in measured.items():
        kind = statistics.mean if "accuracy" in what else statistics.median
        average = {who: kind([math.inf if one is None else one for one in values[who]]) for who in values}
        lines.append([what, *(speed_cell(what, who, average) for who in columns)])
    return lines


def speed_cell(what: str, who: str, average: dict[str, float]) -> str:
    if who not in average:
        return ""
    if math.isinf(average[who]):
        return "not reached"
    if "accuracy" in what:
        return f"{average[who]:.4f}"
    if who == OURS or OURS not in average:
        return number(average[who])
    ratio = average[OURS] / average[who]
    return f"{number(average[who])} ({ratio:.0%})" if who == LIMIT else f"{number(average[who])} ({ratio:.2f} x)"


# ---- numbers ----


def number(value: float) -> str:
    """Three significant digits, without a decimal exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def mean(values: Sequence[float], form: str) -> str:
    """The mean as text; empty without values."""
    return form.format(statistics.mean(values)) if values else ""


def span(values: Iterable[int]) -> str:
    """`101 to 107`, or `101` if all values are the same."""
    found = sorted(set(values))
    return " to ".join(f"{value:,}" for value in dict.fromkeys([found[0], found[-1]]))


TABLES: dict[str, Callable[[], str]] = {"accuracy": accuracy_table, "networks": network_table, "speed": speed_table}
