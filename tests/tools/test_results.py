"""The figures in README.md and docs/: tools/record.py records runs, and tools/tables.py makes tables of the records."""

import copy
import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import tables
from pipeline.editing.recipes import read_recipe
from tests.support.projects import REPOSITORY, Project, Repository, error_line

import pytest
import yaml

RUN = {
    "commit": "1111111aaaa",
    "code": "c1",
    "recipe": "default",
    "photos": {
        "name": "cats and dogs",
        "md5": "5eed",
        "split_id": "aaaaaaaa",
        "train": 3000,
        "validation": 1000,
        "test": 2000,
        "split": {"train": 3000, "validation": 1000, "test": 2000},
    },
    "seeds": {"train": 1, "split": 1},
    "weights": {"resnet18": {"file": "resnet18-0123abcd.pth"}, "resnet34": {"file": "resnet34-0123abcd.pth"}},
    "combined_by": "mean_logits",
    "scores": {},
    "made_with": {"hardware": "a CPU", "threads": 1, "precision": "float32", "torch": "2.0"},
    "seconds": {},
    "note": "",
}
SPEED = {
    "commit": "1111111aaaa",
    "photos": "cats and dogs",
    "split": [16, 8, 8],
    "epochs": 1,
    "batch_size": 8,
    "rounds": 3,
    "weights": {"resnet18": "none", "resnet34": "none"},
    "cores": 2,
    "made_with": RUN["made_with"],
    "note": "",
    "measured": {
        "archive to ensemble, s": {"pipeline": [1, 100, 90], "fastai": [400, 360, 380]},
        "training, images/s": {"limit": [60, 50, 40], "pipeline": [1234, 45, 44.44]},
        "test accuracy": {"pipeline": [0.9, 0.8, 0.9], "fastai": [0.9, 0.9, 0.9]},
        "archive to 0.98, s": {"pipeline": [5, None, 6], "fastai": [None, None, 7]},
    },
}


# --- the pages of this repository


def test_the_tables_in_the_docs_are_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    pages = {page: page.read_text(encoding="utf-8") for page in tables.find_pages()}
    assert {page: tables.fill(page) for page in pages} == pages
    used = [name for name in tables.TABLES for text in pages.values() if f"<!-- table: {name} -->" in text]
    assert used == ["accuracy", "networks", "speed"]


def test_records_name_no_folder_of_the_computer() -> None:
    for path in (REPOSITORY / "results").rglob("*.json"):
        assert [text for text in texts_in(json.loads(path.read_text())) if text.startswith(("/", "~"))] == []


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)
    elif isinstance(value, str):
        yield value


# --- tools/record.py


@pytest.fixture
def run(repository: Repository) -> Repository:
    """The finished repository, whose params are those of a recipe named small."""
    small = read_recipe("ensemble-post", REPOSITORY / "recipes")
    small |= {"prepare.image_size": 32, "train.epochs": 1, "train.batch_size": 8}
    (repository.root / "recipes/small.yaml").write_text(yaml.safe_dump(small))
    repository.commit()
    return repository


@pytest.mark.slow
def test_record_writes_what_a_run_was_and_how_well_it_did(run: Repository) -> None:
    printed = run.succeed(
        "record.py",
        "Cats and dogs",
        "--note",
        "Tiny photos.",
        "--seconds",
        "train_resnet18=12.5",
        "--seconds",
        "train_timm-vit=3",
    )
    path = "results/cats-and-dogs-24/small-seed1.json"
    assert printed == f"wrote {path}; `make tables` updates the tables\n"
    record = run.read_json(path)

    assert record["commit"] == run.git("rev-parse", "HEAD").strip()
    lock = yaml.safe_load((run.root / "dvc.lock").read_text())["stages"]["prepare"]
    assert record["photos"] == {
        "name": "Cats and dogs",
        "md5": next(dep["md5"] for dep in lock["deps"] if dep["path"] == "data/raw/train.zip"),
        "split_id": run.packed("test")[2]["split_id"],
        **{"train": 24, "validation": 12, "test": 12},
        "split": {"train": 24, "validation": 12, "test": 12},
    }
    assert (record["recipe"], record["seeds"]) == ("small", {"train": 1, "split": 1})
    assert (record["note"], record["seconds"]) == ("Tiny photos.", {"train_resnet18": 12.5, "train_timm-vit": 3})
    assert record["weights"] == {"resnet18": {"file": "none"}, "resnet34": {"file": "none"}}
    assert record["made_with"]["threads"] == 1
    for name, sha256 in record["predictions"].items():
        assert hashlib.sha256((run.root / name).read_bytes()).hexdigest() == sha256

    assert list(record["scores"]) == ["resnet18", "resnet34", "ensemble"]
    for table in ("scores/networks.csv", "scores/ensemble.csv"):
        for row in csv.DictReader((run.root / "metrics" / table).open()):
            scores = record["scores"][row["network"]][row["split"]]
            assert (scores["correct"], scores["photos"]) == (int(row["correct"]), int(row["total"]))
            assert scores["log_loss"] == pytest.approx(float(row["log_loss"]), abs=1e-5)
    curve = list(csv.DictReader((run.root / "metrics/curves/resnet18.csv").open()))
    [kept] = [row["epoch"] for row in curve if row["kept"] == "True"]
    assert record["scores"]["resnet18"]["kept_epoch"] == int(kept)

    (run.root / "README.md").write_text("<!-- table: networks -->\n<!-- end of table -->\n")
    run.succeed("tables.py")
    correct = record["scores"]["ensemble"]["test"]["correct"]
    row = f"| Cats and dogs | 24 | small | ensemble | 1 | {correct} of 12 |"
    assert row in (run.root / "README.md").read_text()

    again = run.succeed("record.py", "cats and dogs")
    assert again == f"replaced {path}; `make tables` updates the tables\n"


@pytest.mark.slow
def test_record_refuses_what_others_could_not_trace(run: Repository) -> None:
    (run.root / "pipeline/core/new.py").write_text("# not committed\n")
    assert error_line(run.run("record.py", "cats")) == (
        "pipeline/core/new.py: not committed; commit the code, then run `dvc repro` and this again"
    )
    (run.root / "pipeline/core/new.py").unlink()
    recipe = (run.root / "recipes/small.yaml").read_text()
    (run.root / "recipes/small.yaml").write_text(recipe.replace("epochs: 1", "epochs: 4"))
    run.commit()
    assert error_line(run.run("record.py", "cats")) == (
        "the params are not those of a recipe; they differ from small in train.epochs 1 instead of 4; add a file to "
        "recipes/, so that the tables can name it"
    )
    run.params["lr"] = 0.5
    run.write_params()
    assert error_line(run.run("record.py", "cats")) == "the results are out of date; run `dvc repro` first"
    shutil.rmtree(run.root / ".git")
    assert error_line(run.run("record.py", "cats")).startswith("there is no git commit here; ")
    assert not (run.root / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["?!"], "PHOTOS is '?!'; expected a name with letters or digits"),
        (
            ["cats", "--seconds", "train=soon"],
            "'train=soon' is not a stage and its seconds, such as train_resnet18=713",
        ),
    ],
)
def test_record_names_a_wrong_argument(arguments: list[str], line: str, project: Project) -> None:
    assert line in error_line(project.run("record.py", *arguments))


# --- tools/tables.py


class Pages(Project):
    """A README.md with all tables, and records."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        names = "\n\n".join(f"<!-- table: {name} -->\n<!-- end of table -->" for name in tables.TABLES)
        (root / "README.md").write_text(f"# Figures\n\n{names}\nThe end\n")

    def add(self, name: str, record: dict) -> None:
        path = self.root / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))

    def table(self, name: str) -> list[list[str]]:
        """The cells of a table, without the line below its headings."""
        self.succeed("tables.py")
        lines = self.text(name).splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        return [rows[0], *rows[2:]]

    def text(self, name: str) -> str:
        """What is between the comments."""
        text = (self.root / "README.md").read_text()
        return text.split(f"<!-- table: {name} -->\n")[1].split("<!-- end of table -->")[0]


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    return Pages(tmp_path / "pages")


def record(seed: int = 1, correct: dict[str, int] | None = None, **changes: object) -> dict:
    """A record with these correct answers on test; `changes` are to the other content."""
    made = copy.deepcopy(RUN) | {"seeds": {"train": seed, "split": 1}}
    for name, count in (correct or {"resnet18": 1900, "resnet34": 1800, "ensemble": 1950}).items():
        made["scores"][name] = {
            **({} if name == "ensemble" else {"kept_epoch": seed}),
            "validation": {"correct": 900, "photos": 1000, "log_loss": 0.25},
            "test": {"correct": count, "photos": 2000, "log_loss": seed / 10},
        }
    for key, value in changes.items():
        made[key] = made[key] | value if isinstance(value, dict) else value
    return made


def test_tables_has_the_mean_of_the_seeds_and_the_correct_answers(pages: Pages) -> None:
    for seed, count in ((2, 1890), (1, 1900), (3, 1920)):
        scores = {"resnet18": count, "resnet34": 1800, "ensemble": 1950}
        pages.add(f"a/{seed}.json", record(seed, scores, seconds={"train_resnet18": 100 * seed}, note="Small photos."))
    assert pages.table("accuracy") == [
        ["photos", "in train", "recipe", "resnet18", "resnet34", "ensemble", "seeds"],
        [
            *("cats and dogs", "3,000", "default", "0.9517 (1,890 to 1,920 of 2,000)", "0.9000 (1,800 of 2,000)"),
            *("0.9750 (1,950 of 2,000)", "1, 2, 3"),
        ],
    ]
    networks = pages.table("networks")
    assert networks[1][3:] == [
        "resnet18",
        "1, 2, 3",
        "1,900, 1,890, 1,920 of 2,000",
        "0.2000",
        "0.9000",
        "1, 2, 3",
        "200",
    ]
    assert networks[3][3:] == ["ensemble", "1, 2, 3", "1,950, 1,950, 1,950 of 2,000", "0.2000", "0.9000", "", ""]
    assert "Small photos." in pages.text("accuracy")
    assert " ".join(pages.text("networks").split()).endswith(
        "Code: 1111111. Hardware: a CPU, 1 thread, float32, PyTorch 2.0. Weights: resnet18-0123abcd.pth, "
        "resnet34-0123abcd.pth. Ensemble by: mean_logits. Small photos."
    )


@pytest.mark.parametrize(
    ("changes", "heading", "cells"),
    [
        ({"code": "c2", "commit": "2222222bbbb"}, "code", ["1111111", "2222222"]),
        ({"photos": {"split_id": "bbbbbbbb"}}, "split", ["aaaaaaa", "bbbbbbb"]),
        (
            {"made_with": {"threads": 2}},
            "hardware",
            ["a CPU, 1 thread, float32, PyTorch 2.0", "a CPU, 2 threads, float32, PyTorch 2.0"],
        ),
        ({"note": "Odd."}, "note", ["", "Odd."]),
        ({"combined_by": "majority_vote"}, "ensemble by", ["mean_logits", "majority_vote"]),
        (
            {"weights": {"resnet18": {"file": "none"}}},
            "weights",
            ["resnet18-0123abcd.pth, resnet34-0123abcd.pth", "none, resnet34-0123abcd.pth"],
        ),
    ],
)
def test_a_row_says_what_its_runs_do_not_share_with_the_others(
    changes: dict, heading: str, cells: list[str], pages: Pages
) -> None:
    pages.add("a/default.json", record())
    pages.add("a/best.json", record(recipe="best"))
    assert heading not in pages.table("accuracy")[0]
    pages.add("a/best.json", record(recipe="best", **changes))
    for name in ("accuracy", "networks"):
        headings, *rows = pages.table(name)
        assert headings[-1] == heading
        assert list(dict.fromkeys(row[-1] for row in rows)) == cells


def test_the_short_table_has_no_column_for_what_differs_only_between_other_photos(pages: Pages) -> None:
    pages.add("a/default.json", record())
    photos = {"name": "flowers", "md5": "f", "train": 300}
    pages.add("b/default.json", record(photos=photos, code="c2", commit="2222222bbbb"))
    assert pages.table("accuracy")[0][-1] == "seeds"
    assert pages.table("networks")[0][-1] == "code"
    assert "Weights: resnet18-0123abcd.pth, resnet34-0123abcd.pth." in " ".join(pages.text("accuracy").split())


def test_runs_of_different_code_are_not_averaged(pages: Pages) -> None:
    pages.add("a/1.json", record(1))
    pages.add("a/2.json", record(2, code="c2", commit="2222222bbbb"))
    assert [row[-2:] for row in pages.table("accuracy")] == [["seeds", "code"], ["1", "1111111"], ["2", "2222222"]]


def test_seeds_with_their_own_splits_are_one_row_that_says_so(pages: Pages) -> None:
    for seed in (1, 2):
        pages.add(f"a/{seed}.json", record(seed, photos={"split_id": f"{seed}" * 8, "train": 3000 - seed}))
    [_, row] = pages.table("accuracy")
    assert (row[1], row[-1]) == ("2,998 to 2,999", "1, 2, each with its own split")


def test_the_most_photos_come_first_and_networks_that_did_not_run_have_no_figure(pages: Pages) -> None:
    few = {"train": 30, "split": {"train": 30, "validation": 10, "test": 20}, "split_id": "cccccccc"}
    pages.add("a/1.json", record(correct={"resnet18": 1000}, photos=few))
    pages.add("b/1.json", record(recipe="best"))
    pages.add("b/2.json", record())
    rows = pages.table("accuracy")[1:]
    assert [row[:3] for row in rows] == [
        ["cats and dogs", "3,000", "default"],
        ["cats and dogs", "3,000", "best"],
        ["cats and dogs", "30", "default"],
    ]
    assert rows[2][3:6] == ["0.5000 (1,000 of 2,000)", "", ""]


def test_the_table_of_speeds_has_medians_and_ratios(pages: Pages) -> None:
    pages.add("speed.json", SPEED)
    assert pages.table("speed") == [
        ["", "pipeline", "fastai", "limit"],
        ["archive to ensemble, s", "90", "380 (0.24 x)", ""],
        ["training, images/s", "45", "", "50 (90%)"],
        ["test accuracy", "0.8667", "0.9000", ""],
        ["archive to 0.98, s", "6", "not reached", ""],
    ]
    assert "Code: commit 1111111. 16/8/8 photos (cats and dogs), epochs: 1" in pages.text("speed")
    pages.add("speed.json", SPEED | {"commit": "1111111aaaa+"})
    assert error_line(pages.run("tables.py")) == (
        "results/speed.json was measured with code that is not committed; commit it and run `make bench` again"
    )


def test_tables_checks_without_writing_and_changes_nothing_else(pages: Pages) -> None:
    pages.succeed("tables.py")
    page = pages.root / "README.md"
    assert page.read_text().count("No run is recorded yet.") == 2
    pages.add("a/1.json", record())
    before = page.read_bytes()
    line = "README.md: a table does not match results/; run `make tables`"
    assert error_line(pages.run("tables.py", "--check")) == line
    assert page.read_bytes() == before
    assert pages.succeed("tables.py") == "wrote README.md\n"
    assert pages.succeed("tables.py", "--check") == "the tables match results/\n"
    assert page.read_text().startswith("# Figures\n\n<!-- table: accuracy -->\n| photos | in train |")
    assert page.read_text().endswith("<!-- end of table -->\nThe end\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<!-- table: sizes -->\n<!-- end of table -->", "there is no table sizes; expected one of accuracy, "),
        ("<!-- table: speed -->\n", "a table has no start or no end; expected "),
        ("<!-- end of table -->", "a table has no start or no end; expected "),
        ("<!-- table: speed -->\n<!-- table: speed -->\n<!-- end of table -->", "a table has no start or no end; "),
    ],
)
def test_tables_names_a_page_with_a_wrong_comment(text: str, line: str, pages: Pages) -> None:
    (pages.root / "docs").mkdir()
    (pages.root / "docs/a.md").write_text(text)
    before = (pages.root / "README.md").read_bytes()
    assert error_line(pages.run("tables.py")).startswith(f"docs/a.md: {line}")
    assert (pages.root / "README.md").read_bytes() == before


def test_tables_names_a_damaged_record_and_a_wrong_folder(pages: Pages, project: Project) -> None:
    pages.add("a/1.json", record())
    (pages.root / "results/a/1.json").write_text("{")
    assert error_line(pages.run("tables.py")).startswith("results/a/1.json is not valid JSON (")
    for other in ([], {key: value for key, value in record().items() if key != "seeds"}):
        pages.add("a/1.json", other)
        assert error_line(pages.run("tables.py")) == (
            "results/a/1.json lacks seeds: it was written by something else, or another version; record the run again"
        )
    assert error_line(project.run("tables.py")).endswith("; run this from the project's root")
