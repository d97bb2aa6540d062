"""Any classes: what `python stages/prepare.py` makes of lists, folders and tables of two to a hundred classes."""

import io
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from projects import SPLITS, Project, error_line

FLOWERS = {"daisy": 10, "rose": 25, "tulip": 15}


def photo(number: int) -> bytes:
    """A PNG of noise, different for each `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def class_folders(photos: dict[str, int], top: str = "photos", first: int = 0) -> dict[str, bytes]:
    """A folder per class, with so many photos of it: photos/daisy/0.png and so on."""
    names = [f"{top}/{name}/{number}.png" for name, count in photos.items() for number in range(count)]
    return {name: photo(first + number) for number, name in enumerate(names)}


def counts(project: Project) -> dict[str, dict[str, int]]:
    """The photos of each split, by class."""
    rows = [row for row in project.split_table() if row["split"]]
    return {split: dict(Counter(row["label"] for row in rows if row["split"] == split)) for split in SPLITS}


@pytest.fixture
def flowers(project: Project) -> Project:
    """50 photos in three folders, classes auto, split by shares."""
    project.photos(class_folders(FLOWERS))
    project.params["classes"] = "auto"
    project.split(train=0.6, validation=0.2, test=0.2)
    return project


def test_prepare_takes_the_classes_from_the_folders_and_divides_each_in_proportion(flowers: Project) -> None:
    printed = flowers.prepare().stdout
    assert printed.startswith("50 photos: 30 train, 10 validation, 10 test (10 daisy, 25 rose, 15 tulip); ")
    assert counts(flowers) == {
        "train": {"daisy": 6, "rose": 15, "tulip": 9},
        "validation": {"daisy": 2, "rose": 5, "tulip": 3},
        "test": {"daisy": 2, "rose": 5, "tulip": 3},
    }
    assert flowers.read_json("metrics/prepare.json")["classes"] == FLOWERS
    for split in SPLITS:
        _, labels, description = flowers.packed(split)
        assert description["classes"] == ["daisy", "rose", "tulip"]
        rows = [row["label"] for row in flowers.split_table() if row["split"] == split]
        assert [description["classes"][label] for label in labels] == rows
        # Any first part of a split has the classes in the same proportion, to within a photo.
        for rows_so_far in range(1, len(labels) + 1):
            shares = np.bincount(labels[:rows_so_far], minlength=3) - rows_so_far * np.bincount(labels) / len(labels)
            assert np.abs(shares).max() <= 1


def test_prepare_divides_a_number_by_the_largest_remainder(flowers: Project) -> None:
    flowers.split(train=23, validation=7, test=9)
    flowers.prepare()
    # Of 9: 1.8, 4.5, 2.7. Of 7: 1.4, 3.5, 2.1. Of 23: 4.6, 11.5, 6.9.
    assert counts(flowers) == {
        "train": {"daisy": 5, "rose": 11, "tulip": 7},
        "validation": {"daisy": 1, "rose": 4, "tulip": 2},
        "test": {"daisy": 2, "rose": 4, "tulip": 3},
    }


def test_prepare_keeps_every_class_in_every_split_even_a_rare_one(flowers: Project) -> None:
    flowers.photos(class_folders({"common": 60, "rare": 3}))
    flowers.prepare()
    assert {split: of["rare"] for split, of in counts(flowers).items()} == {"train": 1, "validation": 1, "test": 1}


def test_prepare_names_a_class_that_is_too_rare_for_every_split(flowers: Project) -> None:
    flowers.photos(class_folders({"common": 60, "rare": 2}))
    flowers.write_params()
    text = error_line(flowers.run("prepare.py"))
    assert text.startswith("too few photos: data/raw/train.zip: of 62 photos, train got ")
    assert "; train has none of rare; found 60 common, 2 rare; add photos, change prepare.split or remove " in text


def test_prepare_uses_every_good_photo_if_shares_are_asked_for(flowers: Project) -> None:
    flowers.photos(class_folders(FLOWERS) | {"photos/tulip/9.png": b"no photo", "photos/rose/9.png": b"nor this"})
    flowers.prepare()
    assert sum(sum(of.values()) for of in counts(flowers).values()) == 48
    reasons = flowers.read_json("metrics/prepare.json")["excluded"]
    assert reasons == {"not a photo, or damaged at its start": 2}


def test_prepare_matches_the_names_of_a_list_as_people_write_them(project: Project) -> None:
    files = {f"photos/Golden_Retrievers/{n}.png": photo(n) for n in range(4)}
    files |= {f"photos/golden-retriever ({n}).png": photo(10 + n) for n in range(4)}
    files |= {f"photos/POODLE/small/{n}.png": photo(20 + n) for n in range(8)}
    files |= {f"photos/others/{n}.png": photo(30 + n) for n in range(2)}
    project.photos(files)
    project.params["classes"] = ["poodles", "golden retriever"]
    project.prepare()
    assert project.packed("train")[2]["classes"] == ["poodles", "golden retriever"]
    assert project.read_json("metrics/prepare.json")["classes"] == {"poodles": 8, "golden retriever": 8}
    assert project.row_of("others/0.png")["excluded"] == "no class by its folder, its file name or the table"


def test_prepare_does_not_take_the_numbers_of_photos_for_classes(flowers: Project) -> None:
    flowers.photos(class_folders({"1": 14, "2": 14, "3": 14}))
    flowers.params["classes"] = [1, 2, 3]
    assert "named for another class" not in flowers.prepare().stdout
    assert flowers.read_json("metrics/prepare.json")["classes"] == {"1": 14, "2": 14, "3": 14}


def test_prepare_passes_over_the_folders_of_given_splits(flowers: Project) -> None:
    flowers.photos(
        class_folders({"ants": 10, "bees": 15}, "insects/train")
        | class_folders({"ants": 4, "bees": 3}, "insects/val", 50)
    )
    flowers.split(train="train", validation=0.2, test="val")
    flowers.prepare()
    assert counts(flowers) == {
        "train": {"ants": 8, "bees": 12},
        "validation": {"ants": 2, "bees": 3},
        "test": {"ants": 4, "bees": 3},
    }


def test_prepare_takes_the_classes_from_a_table(flowers: Project) -> None:
    flowers.photos({f"images/{number}.png": photo(number) for number in range(30)})
    rows = pd.DataFrame(
        {"photo": [f"{n}.png" for n in range(30)], "label": [("x, y", "no", "Z")[n % 3] for n in range(30)]}
    )
    flowers.write_params()
    rows.to_csv(flowers.root / "data/labels.csv", index=False)
    flowers.prepare()
    assert flowers.read_json("metrics/prepare.json")["classes"] == {"Z": 10, "no": 10, "x, y": 10}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({f"photos/{number}.png": photo(number) for number in range(12)}, "0 folders that can name a class;"),
        (
            class_folders({"only": 12}, "a/train") | class_folders({"only": 3}, "a/test", 20),
            "1 folders that can name a class (only);",
        ),
    ],
)
def test_prepare_says_what_auto_needs_if_it_finds_no_classes(
    files: dict[str, bytes], found: str, flowers: Project
) -> None:
    flowers.photos(files)
    flowers.write_params()
    text = error_line(flowers.run("prepare.py"))
    assert text.startswith(f"classes in params.yaml is auto, but the photos are in {found}")
    assert text.endswith("list the photos in prepare.labels, or set classes to a list of names")


def test_prepare_relabels_to_any_of_the_classes(flowers: Project) -> None:
    flowers.correct("rose/0.png: tulip", "daisy/0.png: leave out")
    flowers.prepare()
    row = flowers.row_of("rose/0.png")
    assert (row["label"], row["relabelled_from"]) == ("tulip", "rose")
    assert flowers.read_json("metrics/prepare.json")["classes"] == {"daisy": 9, "rose": 24, "tulip": 16}


def test_prepare_keeps_the_proportion_of_the_source_whatever_is_corrected(project: Project) -> None:
    project.photos(class_folders({"cat": 40, "dog": 40}))
    project.correct(*[f"cat/{number}.png: dog" for number in range(10)])
    project.split(train=20, validation=10, test=10)
    project.prepare()
    assert counts(project)["test"] == {"cat": 5, "dog": 5}


def test_prepare_takes_a_hundred_classes(flowers: Project) -> None:
    names = [f"a class with a longer name, number {number}" for number in range(100)]
    flowers.photos(class_folders(dict.fromkeys(names, 5)))
    printed = flowers.prepare().stdout
    assert printed.startswith("500 photos: 300 train, 100 validation, 100 test (5 a class")
    assert "... (100 in all)" in printed
    _, labels, description = flowers.packed("test")
    assert description["classes"] == sorted(names)
    assert sorted(labels.tolist()) == list(range(100))


# --- proportions


BROKEN = b"no photo"


@pytest.mark.parametrize(
    ("folders", "more", "corrections", "cats"),
    [
        ({"cat": 16, "dog": 16}, {f"photos/cat/bad{n}.png": BROKEN for n in range(5)}, [], 16),
        (
            {"cat": 24, "dog": 8},
            {f"photos/{name}/both{n}.png": photo(100 + n) for name in ("cat", "dog") for n in range(8)},
            [],
            24,
        ),
        ({"cat": 26, "dog": 16}, {}, [f"cat/{n}.png: leave out" for n in range(10)], 16),
        ({"cat": 26, "dog": 6}, {}, [f"cat/{n}.png: dog" for n in range(10)], 16),
    ],
    ids=["damaged", "under both labels", "left out", "relabelled"],
)
def test_prepare_fills_the_splits_if_enough_photos_can_be_used(
    folders: dict[str, int], more: dict[str, bytes], corrections: list[str], cats: int, project: Project
) -> None:
    """There are 32 places and 32 photos, `cats` of them of cats."""
    project.photos(class_folders(folders) | more)
    project.correct(*corrections)
    project.split(train=16, validation=8, test=8)
    project.prepare()
    assert counts(project) == {
        split: {"cat": cats // part, "dog": (32 - cats) // part}
        for split, part in {"train": 2, "validation": 4, "test": 4}.items()
    }


def test_prepare_rounds_so_that_all_photos_fit(flowers: Project) -> None:
    flowers.photos(class_folders({"daisy": 11, "rose": 11, "tulip": 10}))
    flowers.split(train=16, validation=8, test=8)
    flowers.prepare()
    assert counts(flowers) == {
        "train": {"daisy": 5, "rose": 5, "tulip": 6},
        "validation": {"daisy": 3, "rose": 3, "tulip": 2},
        "test": {"daisy": 3, "rose": 3, "tulip": 2},
    }


@pytest.mark.parametrize("corrections", [[], [f"cat/bad{n}.png: leave out" for n in range(20)]])
def test_prepare_takes_the_proportion_of_the_photos_that_can_be_read(corrections: list[str], project: Project) -> None:
    project.photos(class_folders({"cat": 20, "dog": 20}) | {f"photos/cat/bad{n}.png": BROKEN for n in range(20)})
    project.correct(*corrections)
    project.prepare()
    assert counts(project)["train"] == {"cat": 4, "dog": 4}
