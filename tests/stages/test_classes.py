"""Any classes: what `python stages/prepare.py` makes of lists, folders and tables of two to a hundred classes."""

import io
import unicodedata
from collections import Counter

from pipeline.core.split_table import describe_classes
from tests.support.projects import SPLITS, Project, error_line

import numpy as np
import pandas as pd
import pytest
from PIL import Image

LIMIT = "prepare.min_photos_per_class"
FLOWERS = {"daisy": 10, "rose": 25, "tulip": 15}


def photo(number: int) -> bytes:
    """A PNG of noise, different for each `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def class_folders(photos: dict[str, int], top: str = "photos", first: int = 0) -> dict[str, bytes]:
    """A folder per class, with this number of photos: photos/daisy/0.png and so on."""
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
    printed = flowers.prepare().stdout.splitlines()[-1]
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
    flowers.photos(class_folders({"common": 60, "usual": 9, "rare": 2, "single": 1}))
    flowers.write_params()
    beginning = (
        "data/raw/train.zip: every split needs photos of each class, but there are too few of single (1, none in train "
        "and validation), rare (2, none in train); add photos of them, change prepare.split, or "
    )
    assert error_line(flowers.run("prepare.py")) == f"{beginning}leave them out with {LIMIT}=3"
    flowers.params["classes"] = ["common", "usual", "rare", "single"]
    flowers.write_params()
    assert error_line(flowers.run("prepare.py")) == f"{beginning}remove them from classes"


@pytest.mark.parametrize("classes", ["auto", ["common", "rare"]])
def test_prepare_does_not_advise_to_leave_out_all_classes_but_one(flowers: Project, classes: str | list[str]) -> None:
    flowers.photos(class_folders({"common": 60, "rare": 2}))
    flowers.params["classes"] = classes
    flowers.write_params()
    line = error_line(flowers.run("prepare.py"))
    assert line.endswith("too few of rare (2, none in train); add photos of them or change prepare.split")


def test_prepare_leaves_out_classes_with_fewer_photos_than_asked_for(flowers: Project) -> None:
    photos = class_folders({"common": 20, "an edge": 5, "usual": 10, "rare": 4, "single": 1})
    copies = {f"photos/rare/copy {number}.png": photos["photos/rare/0.png"] for number in range(3)}
    flowers.photos(photos | copies)  # which make 7 files of rare, but no more photos
    flowers.correct("rare/1.png: usual")
    flowers.params["prepare"]["min_photos_per_class"] = 5
    note, *_, last = flowers.prepare().stdout.splitlines()
    assert note == f"note: classes with fewer than 5 photos are left out ({LIMIT}): single (1), rare (6)"
    reason = f"its class has fewer photos than {LIMIT}"
    assert f"(5 an edge, 20 common, 11 usual); 1 relabelled; 3 copies; 7 excluded: {reason}; " in last
    assert flowers.read_json("metrics/prepare.json")["excluded"] == {reason: 7}
    assert flowers.read_json("metrics/prepare.json")["classes"] == {"an edge": 5, "common": 20, "usual": 11}
    for split in SPLITS:
        _, labels, description = flowers.packed(split)
        assert description["classes"] == ["an edge", "common", "usual"]
        rows = [row["label"] for row in flowers.split_table() if row["split"] == split]
        assert [description["classes"][label] for label in labels] == rows
    assert {(row["label"], row["excluded"]) for row in flowers.split_table() if not row["split"]} == {
        ("rare", reason),
        ("single", reason),
    }
    assert flowers.row_of("rare/1.png")["label"] == "usual"


@pytest.mark.parametrize(
    ("classes", "least", "expected"),
    [
        (
            ["daisy", "rose", "tulip"],
            15,
            "there are fewer of daisy (10); remove these from classes in params.yaml, add photos, or lower",
        ),
        (
            "auto",
            16,
            "there are fewer of daisy (10), tulip (15); at least 2 classes must remain; lower it, or add photos",
        ),
    ],
)
def test_prepare_refuses_to_leave_out_a_class_of_a_list_or_all_but_one(
    classes: str | list[str], least: int, expected: str, flowers: Project
) -> None:
    flowers.params["classes"] = classes
    flowers.params["prepare"]["min_photos_per_class"] = least
    flowers.write_params()
    assert error_line(flowers.run("prepare.py")).startswith(f"{LIMIT} is {least}, but {expected}")


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
        ({f"photos/{number}.png": photo(number) for number in range(12)}, "one folder, photos;"),
        (
            class_folders({"only": 12}, "a/train") | class_folders({"only": 3}, "a/test", 20),
            "1 folder that can name a class (only);",
        ),
        (
            class_folders({"valid": 6, "test": 6}),
            "0 folders that can name a class, apart from names of splits (test, valid);",
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
    names = [f"a class with a longer name, number {number}" for number in range(100)]  # 2 comes before 10
    flowers.photos(class_folders(dict.fromkeys(names, 5)))
    printed = flowers.prepare().stdout.splitlines()[-1]
    assert printed.startswith("500 photos: 300 train, 100 validation, 100 test (5 a class")
    assert "... (100 in all)" in printed
    _, labels, description = flowers.packed("test")
    assert description["classes"] == names
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


# --- spellings


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ({"Cat": 4, "cat": 6, "dog": 9}, {"cat": 10, "dog": 9}),
        ({"Tulips": 6, "tulip": 4, "daisy": 9}, {"Tulips": 10, "daisy": 9}),
        (
            {"golden_retriever": 4, "Golden Retriever ": 5, "golden-retrievers": 3, "pug": 9},
            {"Golden Retriever": 12, "pug": 9},
        ),
        ({"STRASSE": 4, "Straße": 5, "\uff57eg": 5, "weg": 4}, {"Straße": 9, "\uff57eg": 9}),
        ({"KEDİ": 4, "kedi": 5, "KAPI": 4, "kap\u0131": 5}, {"kap\u0131": 9, "kedi": 9}),
    ],
)
def test_prepare_makes_one_class_of_the_spellings_of_a_name_and_says_so(
    folders: dict[str, int], classes: dict[str, int], flowers: Project
) -> None:
    flowers.photos(class_folders(folders), "folder")
    printed = flowers.prepare().stdout
    assert flowers.read_json("metrics/prepare.json")["classes"] == classes
    assert printed.startswith("note: spellings of one name are one class: ")
    merged = [name.strip() for name in folders if name not in ("daisy", "dog", "pug")]
    assert all(name in printed.splitlines()[0] for name in merged)


def test_prepare_reads_a_name_alike_however_its_accents_are_encoded(flowers: Project) -> None:
    """In folders, the table, a list, corrections, and prepare.split."""
    tests = {f"photos/{DECOMPOSED}/test {COMPOSED}/{n}.png": photo(50 + n) for n in range(4)}
    tests |= {f"photos/bar/Test {DECOMPOSED}/{n}.png": photo(60 + n) for n in range(4)}
    flowers.photos(
        class_folders({COMPOSED: 5, DECOMPOSED: 4, "bar": 9}) | tests | {"photos/x.png": photo(80)}, "folder"
    )
    flowers.params["prepare"]["split"]["test"] = f"TEST {DECOMPOSED}"
    flowers.correct(f"{COMPOSED}/test {DECOMPOSED}/3.png: BARS", f"bar/0.png: {DECOMPOSED.upper()}")
    flowers.write_params()
    (flowers.root / "data/labels.csv").write_text(f"photo,label\nx.png,{DECOMPOSED}s\n", encoding="utf-8")
    assert flowers.prepare().stdout.startswith(
        f"note: spellings of one name are one class: {COMPOSED} and {COMPOSED}s;"
    )
    as_auto = flowers.prepared_bytes()
    assert counts(flowers)["test"] == {COMPOSED: 3, "bar": 5}
    assert flowers.row_of("x.png")["label"] == COMPOSED
    flowers.params["classes"] = ["bar", COMPOSED]
    flowers.prepare()
    assert flowers.prepared_bytes() == as_auto


def test_prepare_keeps_names_apart_that_only_look_alike(flowers: Project) -> None:
    folders = {"-1": 3, "1": 4, "C": 5, "Cs": 6, "glas": 7, "glass": 8}  # an s makes no plural of a letter or of an s
    flowers.photos(class_folders(folders))
    assert flowers.prepare().stdout.count("note: ") == 1  # of the few test photos
    assert flowers.read_json("metrics/prepare.json")["classes"] == folders
    flowers.params["classes"] = [*folders]
    flowers.prepare()
    assert flowers.read_json("metrics/prepare.json")["classes"] == folders


def test_prepare_refuses_a_list_with_two_spellings_of_a_name(project: Project) -> None:
    project.photos(class_folders({"golden retriever": 9, "pug": 9}))
    project.params["classes"] = ["golden retriever", "pug", "Golden-Retriever"]
    project.write_params()
    assert error_line(project.run("prepare.py")).endswith(
        "expected auto, or a list of at least two different names; golden retriever and Golden-Retriever are spellings "
        "of one name"
    )


def test_prepare_sorts_classes_by_the_numbers_in_their_names(flowers: Project) -> None:
    names = ["-10", "-2", "0.25", "0.5", "1", "2", "10", "B 2", "B 10", "a"]
    flowers.photos(class_folders(dict.fromkeys(names, 5)))
    flowers.prepare()
    assert list(flowers.read_json("metrics/prepare.json")["classes"]) == names
    table = pd.DataFrame({"split": "test", "label": ["10", "2", "2", "1"]})
    assert describe_classes(table).endswith("; test: 1 1, 2 2, 1 10")


# --- classes named like splits


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ({"car": 8, "bus": 9, "train": 10}, {"bus": 9, "car": 8, "train": 10}),
        ({"valid": 8, "invalid": 9}, {"invalid": 9, "valid": 8}),
        ({"train/car": 8, "train/train": 9, "val/car": 3, "val/train": 4}, {"car": 11, "train": 13}),
        ({"train/car": 8, "train/train": 9, "val/train": 4}, {"car": 8, "train": 13}),
        ({"car/train": 8, "car/test": 3, "train/train": 9, "train/test": 4}, {"car": 11, "train": 13}),
        # splits
        ({"cat": 8, "dog": 9, "test/cat": 4, "test/dog": 3}, {"cat": 12, "dog": 12}),
        ({"cat/train": 8, "cat/test": 3, "dog/train": 9, "dog/test": 4}, {"cat": 11, "dog": 13}),
        ({"train/cat": 8, "train/dog": 9, "test": 5}, {"cat": 8, "dog": 9}),
    ],
    ids=lambda value: " ".join(value),
)
@pytest.mark.parametrize("is_auto", [True, False], ids=["auto", "list"])
def test_prepare_tells_classes_from_splits_by_where_their_folders_are(
    is_auto: bool, folders: dict[str, int], classes: dict[str, int], flowers: Project
) -> None:
    flowers.photos(class_folders(folders))
    if not is_auto:
        flowers.params["classes"] = [*classes]
    printed = flowers.prepare().stdout
    assert flowers.read_json("metrics/prepare.json")["classes"] == classes
    named_like_splits = {"train", "valid"} & classes.keys()
    assert ("is a class, not a split" in printed) == (is_auto and bool(named_like_splits))


def test_prepare_takes_the_split_of_a_photo_from_a_folder_that_is_not_its_class(flowers: Project) -> None:
    flowers.photos(
        class_folders({"car": 10, "train": 15, "val": 5}, "photos/train")
        | class_folders({"car": 4, "train": 3, "val": 2}, "photos/val", 50)
    )
    flowers.split(train="train", validation=0.2, test="val")
    flowers.prepare()
    assert counts(flowers) == {
        "train": {"car": 8, "train": 12, "val": 4},
        "validation": {"car": 2, "train": 3, "val": 1},
        "test": {"car": 4, "train": 3, "val": 2},
    }


def test_prepare_labels_by_file_names_in_a_split_with_the_name_of_a_class(project: Project) -> None:
    names = [f"photos/train/{name}.{number}.png" for name in ("car", "train") for number in range(8)]
    project.photos({name: photo(number) for number, name in enumerate(names)})
    project.params["classes"] = ["car", "train"]
    project.prepare()
    assert project.read_json("metrics/prepare.json")["classes"] == {"car": 8, "train": 8}


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ({"train": 8, "test": 9}, {"train": 8, "test": 9}),
        ({"train/steam": 8, "plane/jet": 9}, {"train": 8, "plane": 9}),  # steam is no class, so train is one
        ({"train/car": 8, "train/train": 9, "train/bike": 5}, {"train": 9, "car": 8}),  # a bike is no train
    ],
)
def test_prepare_finds_the_classes_of_a_list_that_are_named_like_splits(
    folders: dict[str, int], classes: dict[str, int], project: Project
) -> None:
    project.photos(class_folders(folders))
    project.params["classes"] = [*classes]
    project.split(train=0.6, validation=0.2, test=0.2)
    project.prepare()
    assert project.read_json("metrics/prepare.json")["classes"] == classes


@pytest.mark.parametrize("classes", ["auto", ["car", "bus", "train"]])
def test_prepare_refuses_a_class_as_a_split(classes: str | list[str], flowers: Project) -> None:
    flowers.photos(class_folders({"car": 8, "bus": 9, "train": 10}))
    flowers.params["classes"] = classes
    flowers.split(train="train", validation=0.2, test=0.2)
    flowers.write_params()
    assert error_line(flowers.run("prepare.py")) == (
        "params.yaml: prepare.split.train is 'train'; expected a number of photos, a share such as 0.2, or the "
        "name of a folder or of a split in the table; the folder train is the class train"
    )
