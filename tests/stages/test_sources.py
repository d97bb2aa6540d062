"""What people really have: containers, layouts, tables, given splits, copies and odd photos."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from pipeline.photos import copies
from pipeline.photos.copies import similar_hashes
from pipeline.photos.decoding import decode
from pipeline.photos.source import Photo
from tests.support.containers import CONTAINERS, as_tar_with_links, write_archive
from tests.support.photos import CLASSES, draw_photo, encode, kaggle_files, photo_bytes, write_zip
from tests.support.projects import REPOSITORY, SPLITS, Project, error_line

import numpy as np
import pytest
from PIL import Image, ImageEnhance

Files = dict[str, bytes]


def class_folders(photos: int, top: str = "photos", first: int = 0) -> Files:
    """top/cats/0.jpg and so on, with this number of photos of each class."""
    return {
        f"{top}/{label}s/{n}.jpg": photo_bytes(label, n)
        for label in ("cat", "dog")
        for n in range(first, first + photos)
    }


def scene(number: int) -> Image.Image:
    """A synthetic photo with large and small shapes, as real ones have, unlike noise: its copies can be recognised."""
    random = np.random.default_rng([7, number])
    layers = [
        np.asarray(Image.fromarray(random.integers(0, 256, (side, side, 3)).astype(np.uint8)).resize((160, 120)))
        for side in (3, 6, 12, 24, 48)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=(16, 8, 4, 2, 1)).astype(np.uint8))


def last_line(project: Project) -> str:
    return project.prepare().stdout.splitlines()[-1]


def splits_of(project: Project) -> dict[str, str]:
    """The split of each photo that is in one, by name."""
    return {row["photo"]: row["split"] for row in project.split_table() if row["split"]}


# --- containers


@pytest.mark.parametrize("write", CONTAINERS, ids=lambda write: write.__name__)
def test_prepare_reads_the_same_photos_from_every_container(write: object, project: Project, tmp_path: Path) -> None:
    files = kaggle_files(cats=8, dogs=8)
    (tmp_path / "source").mkdir()
    project.params["prepare"]["source"] = str(write(tmp_path / "source", files))
    project.prepare()
    held = {row["sha256"]: row["label"] for row in project.split_table() if row["split"]}
    assert len(held) == 16
    plain = Project(tmp_path / "plain")
    plain.photos(files)
    plain.prepare()
    assert held == {row["sha256"]: row["label"] for row in plain.split_table() if row["split"]}
    for split in SPLITS:  # the same pixels in the same order
        assert project.packed(split)[0].tobytes() == plain.packed(split)[0].tobytes()


def in_zip(files: Files) -> bytes:
    buffer = io.BytesIO()
    write_archive(buffer, files)
    return buffer.getvalue()


def in_tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def numbered(label: str, first: int = 0) -> Files:
    """0.jpg to 7.jpg, different ones for another `first`."""
    return {f"{n}.jpg": photo_bytes(label, first + n) for n in range(8)}


CLASS_ARCHIVES = {
    "in the folder of a class": {"cat/photos.zip": in_zip(numbered("cat")), "dog/photos.zip": in_zip(numbered("dog"))},
    "named after a class": {"cat.tar.gz": in_tar(numbered("cat")), "dog.zip": in_zip(numbered("dog"))},
    "beside a folder": {
        "dog.zip": in_zip(numbered("dog")),
        **{f"cat/{name}": content for name, content in numbered("cat").items()},
    },
}


@pytest.mark.parametrize("where", CLASS_ARCHIVES)
def test_prepare_takes_the_class_from_the_path_of_an_archive(where: str, project: Project) -> None:
    project.photos(CLASS_ARCHIVES[where], "folder")
    project.params["classes"] = "auto"
    assert last_line(project).startswith("16 photos: 8 train, 4 validation, 4 test (8 cat, 8 dog); ")
    assert "skipped" not in last_line(project)
    by_hash = {hashlib.sha256(content).hexdigest(): label for label in CLASSES for content in numbered(label).values()}
    assert {row["sha256"]: row["label"] for row in project.split_table()} == by_hash


def test_prepare_keeps_photos_of_one_name_from_a_folder_and_an_archive(project: Project) -> None:
    files = {f"{label}/{name}": content for label in CLASSES for name, content in numbered(label).items()}
    project.photos(files | {"dog.zip": in_zip(numbered("dog", first=20))}, "folder")
    project.prepare()
    expected = {*files, *(f"dog/(2)/{name}" for name in numbered("dog"))}
    assert {row["photo"]: row["label"] for row in project.split_table()} == {name: name[:3] for name in expected}


@pytest.mark.parametrize("kind", [in_zip, in_tar])
@pytest.mark.parametrize("top", ["", "download/"], ids=["beside", "in a folder of its name"])
def test_prepare_does_not_read_an_archive_that_is_unpacked_beside_it(
    kind: Callable[[Files], bytes], top: str, project: Project, tmp_path: Path
) -> None:
    files = kaggle_files(cats=8, dogs=8)
    unpacked = {f"{top}{name}": content for name, content in list(files.items())[1:]}  # one of them was deleted since
    suffix = "zip" if kind == in_zip else "tgz"
    project.photos(unpacked | {f"download.{suffix}": kind(files)}, "folder")
    project.split(train=8, validation=4, test=2)
    assert f"; skipped: 1 archive that is already unpacked (download.{suffix}); " in last_line(project)
    without = Project(tmp_path / "without")
    without.photos(unpacked, "folder")
    without.split(train=8, validation=4, test=2)
    without.prepare()
    assert project.prepared_bytes() == without.prepared_bytes()


def test_prepare_reads_the_links_in_a_tar(project: Project, tmp_path: Path) -> None:
    project.params["prepare"]["source"] = str(as_tar_with_links(tmp_path, kaggle_files(cats=8, dogs=8)))
    assert last_line(project).startswith("32 photos: ")
    assert "; 16 copies; " in last_line(project)


def test_prepare_refuses_archives_that_are_too_deep_in_each_other(project: Project) -> None:
    content = in_zip(kaggle_files(cats=8, dogs=8))
    for _ in range(6):  # some archives contain themselves
        content = in_zip({"r.zip": content})
    project.photos({"r.zip": content}, "folder")
    project.write_params()
    error = error_line(project.run("prepare.py"))
    assert error == "folder/r/r/r/r/r/r.zip: is nested in 5 other archives; extract them"


NAMES_IN_ZIPS = {  # how the names of the classes are written, and what prepare says about it
    "UTF-8": ("utf-8", ("äö", "üß"), ""),
    "code page 437": ("cp437", ("chaté", "perro"), "read as code page 437, such as chaté/0.jpg; "),
    "GBK": ("gbk", ("猫猫", "狗狗"), "read as GBK, such as 猫猫/0.jpg; "),
    "neither": ("cp1251", ("кошка", "собак"), "read as code page 437, such as Ωε°Ωα/0.jpg; "),
}


@pytest.mark.parametrize("kind", NAMES_IN_ZIPS)
def test_prepare_decodes_the_names_in_a_zip_or_says_that_they_are_unknown(kind: str, project: Project) -> None:
    encoding, classes, said = NAMES_IN_ZIPS[kind]
    raw = [name.encode(encoding) for name in classes]
    content = in_zip({f"{'AB'[n % 2] * len(raw[n % 2])}/{n}.jpg": photo_bytes(CLASSES[n % 2], n) for n in range(16)})
    for letter, name in zip((b"A", b"B"), raw, strict=True):  # so no flag says that the names are UTF-8
        content = content.replace(letter * len(name) + b"/", name + b"/")
    project.photos({"photos.zip": content}, "folder")
    project.params["classes"] = "auto"
    output = project.prepare().stdout
    assert said in output
    assert output.count("how its file names are encoded") == bool(said)
    shown = [name.decode("cp437") for name in raw] if kind == "neither" else classes
    assert {row["label"] for row in project.split_table()} == set(shown)


def test_prepare_reads_names_from_info_zips_unicode_field(project: Project) -> None:
    with_field = io.BytesIO()
    with zipfile.ZipFile(with_field, "w") as archive:
        for number in range(16):
            name = f"{'AB'[number % 2] * 3}/{number}.jpg"
            raw = name.encode().replace(b"AAA", b"\x80\xff1").replace(b"BBB", b"\x80\xff2")
            field = b"\1" + zlib.crc32(raw).to_bytes(4, "little") + f"{'猫狗'[number % 2]}/{number}.jpg".encode()
            info = zipfile.ZipInfo(name)
            info.extra = b"up" + len(field).to_bytes(2, "little") + field
            archive.writestr(info, photo_bytes(CLASSES[number % 2], number))
    content = with_field.getvalue().replace(b"AAA/", b"\x80\xff1/").replace(b"BBB/", b"\x80\xff2/")
    project.photos({"photos.zip": content}, "folder")
    project.params["classes"] = "auto"
    output = project.prepare().stdout
    assert "(8 狗, 8 猫)" in output
    assert "file names" not in output


@pytest.mark.slow
def test_prepare_reads_an_inner_archive_larger_than_any_photo(project: Project) -> None:
    """Kaggle's train.zip has 543 MB; the limit for a single photo is less."""
    inner = io.BytesIO()
    write_archive(inner, kaggle_files(cats=8, dogs=8) | {"readme.txt": bytes(2**28)})  # stored, not compressed
    project.photos({"train.zip": inner.getvalue()})
    assert last_line(project).startswith("16 photos: 8 train, 4 validation, 4 test (8 cat, 8 dog); skipped: 1 .txt; ")


def test_prepare_names_an_inner_archive_that_cannot_be_read(project: Project) -> None:
    project.photos({"train.zip": b"no archive"})
    project.write_params()
    assert error_line(project.run("prepare.py")).startswith(
        "data/raw/train.zip/train.zip: cannot be read as a zip, tar"
    )
    inner = io.BytesIO()
    write_archive(inner, kaggle_files(cats=8, dogs=8))
    zip_with_method(project.root / "data/raw/train.zip", {"train.zip": inner.getvalue()}, 9)
    expected = "data/raw/train.zip/train.zip: compressed with Deflate64; re-zip it"
    assert error_line(project.run("prepare.py")) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"7z\xbc\xaf\x27\x1c rest", "is a 7z archive; extract it, or zip it"),
        (b"Rar!\x1a\x07 rest", "is a RAR archive; extract it, or zip it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-lfs pointer; run `git lfs pull`"),
        (b"<!doctype html><title>Sign in", "is a web page, not an archive; log in where you downloaded it"),
    ],
)
def test_prepare_says_what_a_file_is_that_is_no_archive(content: bytes, said: str, project: Project) -> None:
    project.photos({"cat.0.jpg": b""})
    (project.root / "data/raw/train.zip").write_bytes(content)
    project.write_params()
    assert error_line(project.run("prepare.py")).startswith(f"data/raw/train.zip: {said}")


def test_prepare_refuses_a_damaged_archive_beside_photos(project: Project) -> None:
    project.photos(class_folders(8) | {"more.tar.gz": in_tar(numbered("cat"))[:-99]}, "folder")
    project.write_params()
    assert error_line(project.run("prepare.py")).startswith("folder/more.tar.gz: cannot be read as a zip, tar")


# --- labels


@pytest.mark.parametrize(
    "name", ["{0}.{1}.JPG", "{2}.{1}.jpg", "{0} ({1}).jpg", "{0}_{1}.jpg", "{0}-{1}.jpg", "{0}{1}.jpg"]
)
def test_prepare_reads_labels_from_names_as_people_write_them(name: str, project: Project) -> None:
    project.photos(
        {
            "train/" + name.format(label, n, label.upper()): photo_bytes(label, n)
            for label in ("cat", "dog")
            for n in range(8)
        },
        "folder",
    )
    assert last_line(project).startswith("16 photos: 8 train, 4 validation, 4 test (8 cat, 8 dog); ")


def test_prepare_finds_folders_inside_a_class_folder(project: Project) -> None:
    files = {f"cats/siamese/{n}.jpg": photo_bytes("cat", n) for n in range(8)}
    project.photos(files | {f"Dog/big/{n}.jpg": photo_bytes("dog", n) for n in range(8)}, "folder")
    assert last_line(project).startswith("16 photos: 8 train, 4 validation, 4 test (8 cat, 8 dog); ")


def test_prepare_lets_the_folder_win_over_the_name_and_says_so(project: Project) -> None:
    project.photos(
        {f"{label}s/{label}.{n}.jpg": photo_bytes(label, n) for label in ("cat", "dog") for n in range(8)}, "folder"
    )
    (project.root / "folder/cats/cat.7.jpg").rename(project.root / "folder/dogs/cat.7.jpg")
    (project.root / "folder/dogs/dog.7.jpg").rename(project.root / "folder/cats/dog.7.jpg")
    output = project.prepare().stdout
    assert (
        "note: 2 photos are named for another class than their folder, which decides: cats/dog.7.jpg, dogs/cat.7.jpg"
        in output
    )
    assert project.row_of("cats/dog.7.jpg")["label"] == "cat"
    assert project.read_json("metrics/prepare.json")["misnamed"] == 2


def test_prepare_reads_labels_and_splits_from_a_table(project: Project) -> None:
    project.photos({f"images/img_{n:02}.jpg": photo_bytes("dog" if n % 2 else "cat", n) for n in range(16)}, "folder")
    rows = [
        f"img_{n:02};{('Dogs', 'dog')[n % 3 == 0] if n % 2 else 'Cat'};{'eval' if n < 4 else ''}" for n in range(16)
    ]
    (project.root / "labels.csv").write_bytes(("\ufeffFilename;Class;Set\r\n" + "\r\n".join(rows)).encode())
    project.params["prepare"] |= {"labels": "labels.csv", "split": {"train": 8, "validation": 4, "test": "eval"}}
    assert last_line(project).startswith("16 photos: 8 train, 4 validation, 4 test (8 cat, 8 dog); ")
    assert {name for name, split in splits_of(project).items() if split == "test"} == {
        f"img_{n:02}.jpg" for n in range(4)
    }
    assert {row["label"] for row in project.split_table() if int(row["photo"][4:6]) % 2} == {"dog"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "photo,label\nnosuch.jpg,cat\n",
            "1 of 1 photos are not in the source, such as nosuch.jpg; expected names such as",
        ),
        ("photo,label\ncat.0.jpg,horse\n", "line 2: label is 'horse'; expected one of cat, dog"),
        ("a,b\ncat.0.jpg,cat\n", "line 1: columns are a, b; expected photo, label and perhaps split"),
        ("photo,label\n0.jpg,cat\n", "line 2: 0.jpg could be "),
        (None, "does not exist; create it, or set prepare.labels to another table"),
    ],
)
def test_prepare_refuses_a_wrong_table_in_one_line(table: str | None, said: str, project: Project) -> None:
    project.photos(kaggle_files(cats=8, dogs=8) | {"a/0.jpg": b"", "b/0.jpg": b""}, "folder")
    project.write_params()
    path = project.root / "data/labels.csv"
    path.unlink() if table is None else path.write_text(table)
    line = error_line(project.run("prepare.py"))
    assert line.startswith("data/labels.csv")
    assert said in line


def test_prepare_takes_no_label_from_a_parquet_row_without_one(project: Project) -> None:
    """Hugging Face marks unlabelled rows with -1."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    photos = [photo_bytes(label, number) for number in range(8) for label in ("cat", "dog")]
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}

    def write(labels: list[int]) -> None:
        table = pa.table({"image": [{"bytes": content, "path": None} for content in photos], "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, project.root / "data/photos.parquet")

    project.params["prepare"]["source"] = "data/photos.parquet"
    project.split(train=4, validation=4, test=4)
    project.write_params()
    write([0, 1] * 6 + [-1] * 4)
    assert "4 test (6 cat, 6 dog); 4 excluded: no class by its folder" in project.prepare().stdout
    write([0, 1] * 7 + [0, 2])
    assert error_line(project.run("prepare.py")) == (
        "data/photos.parquet: the label of row 15 is 2, but there are 2 classes, cat, dog; expected a number from 0 to "
        "1, or -1 for none"
    )
    pq.write_table(pa.table({"a": [1]}), project.root / "data/photos.parquet")
    assert error_line(project.run("prepare.py")).startswith("data/photos.parquet: its columns are a; expected ")


# --- given splits


def given_splits() -> Files:
    return {
        **class_folders(8, "pets/train"),
        **class_folders(3, "pets/validation", first=20),
        "pets/validation/cats/30.jpg": photo_bytes("cat", 30),
    }


def test_prepare_keeps_given_splits_that_are_named(project: Project) -> None:
    project.photos(given_splits())
    project.params["prepare"]["split"] = {"train": "train", "validation": 0.25, "test": "validation"}
    assert last_line(project).startswith("23 photos: 12 train, 4 validation, 7 test (12 cat, 11 dog); ")
    for name, split in splits_of(project).items():
        assert name.startswith("validation/") == (split == "test")
    labels = project.packed("test")[1]
    assert sorted(labels.tolist()) == [0, 0, 0, 0, 1, 1, 1]  # as they come, and not in pairs
    expected = [row["label"] == "dog" for row in project.split_table() if row["split"] == "test"]
    assert labels.astype(bool).tolist() == expected


def test_a_share_is_one_of_the_photos_that_may_be_used(project: Project) -> None:
    """And not of those in a folder that no split names, if train names one."""
    project.photos(given_splits() | class_folders(20, "pets/extra", first=40))
    project.params["prepare"]["split"] = {"train": "train", "validation": 0.25, "test": "validation"}
    assert last_line(project).startswith("63 photos: 12 train, 4 validation, 7 test (12 cat, 11 dog); ")


def test_prepare_says_that_given_splits_are_ignored_and_how_to_keep_them(project: Project) -> None:
    project.photos(given_splits())
    assert (
        "note: the photos come in splits (train, validation), but prepare.split makes new ones of all of them; to keep "
        "theirs: -S prepare.split.train=train -S prepare.split.validation=0.2 -S prepare.split.test=validation\n"
    ) in project.prepare().stdout


def test_prepare_names_the_folders_there_are_if_a_split_names_none(project: Project) -> None:
    project.photos(given_splits())
    project.params["prepare"]["split"]["test"] = "valid"
    project.write_params()
    assert error_line(project.run("prepare.py")) == (
        "params.yaml: prepare.split.test is 'valid'; expected a number of photos, a share such as 0.2, or the name "
        "of a folder or of a split in the table; names found: pets, train, validation"
    )


def test_prepare_refuses_two_splits_with_the_same_photos(project: Project) -> None:
    project.photos(given_splits())
    project.params["prepare"]["split"] |= {"validation": "validation", "test": "validation"}
    project.write_params()
    assert error_line(project.run("prepare.py")).startswith(
        "params.yaml: prepare.split.validation and prepare.split.test are both 'validation'"
    )


def test_prepare_keeps_augmented_copies_of_roboflow_in_one_split(project: Project) -> None:
    files = {}
    for label in ("cat", "dog"):
        for number in range(10):
            for copy in range(3):  # as different as augmentation makes them
                name = f"{label}/{label}_{number}_jpg.rf.{number * 3 + copy:032x}.jpg"
                files[name] = photo_bytes(label, 100 * copy + number)
    project.photos(files, "folder")
    project.params["prepare"]["split"] = {"train": 12, "validation": 4, "test": 4}
    project.prepare()
    found: dict[str, set[str]] = {}
    for name, split in splits_of(project).items():
        found.setdefault(name.partition(".rf.")[0], set()).add(split)
    assert all(len(splits) == 1 for splits in found.values())


# --- copies


def altered(image: Image.Image) -> dict[str, Image.Image | bytes]:
    cropped = image.crop((2, 1, image.width - 2, image.height - 1))
    return {
        "exact": encode(image, quality=90),
        "re-encoded": encode(image, quality=40),
        "rescaled": encode(image.resize((100, 75)), quality=90),
        "cropped": encode(cropped, quality=90),
        "as PNG": encode(image, "PNG"),
        "brighter": encode(ImageEnhance.Brightness(image).enhance(1.1), quality=90),
    }


@pytest.mark.parametrize("kind", list(altered(scene(0))))
def test_prepare_keeps_copies_in_one_split_and_tests_on_one_of_them(kind: str, project: Project) -> None:
    files = {}
    for label, first in (("cat", 0), ("dog", 100)):
        for number in range(first, first + 12):
            files[f"{label}s/{number}.jpg"] = encode(scene(number), quality=90)
            files[f"{label}s/{number} (1).jpg"] = altered(scene(number))[kind]
    project.photos(files, "folder")
    project.params["prepare"]["split"] = {"train": 8, "validation": 4, "test": 4}
    output = last_line(project)
    assert "; 24 copies; 8 excluded: a copy of a photo in validation or test; " in output
    splits = splits_of(project)
    for name, split in splits.items():
        stem = name.removesuffix(".jpg").removesuffix(" (1)")
        both = [splits.get(f"{stem}.jpg"), splits.get(f"{stem} (1).jpg")]
        assert both == [split, split] if split == "train" else sorted(both, key=str) == sorted([None, split], key=str)
    copies = [row for row in project.split_table() if row["copy_of"]]
    assert len(copies) == 24


def hashes_with_near_copies() -> list[bytes]:
    """4,500 random hashes; a fifth are copies of another one, from which they differ in 1 to 60 bits."""
    random = np.random.default_rng(1)
    bits = random.integers(0, 2, (3600, 256), dtype=np.uint8)
    copied = bits[:900].copy()
    for number, copy in enumerate(copied):
        copy[random.permutation(256)[: 1 + number % 60]] ^= 1
    return list(map(bytes, np.packbits(random.permutation(np.concatenate([bits, copied])), axis=1)))


def test_similar_hashes_are_those_that_differ_in_at_most_50_bits() -> None:
    hashes = hashes_with_near_copies()
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1), axis=1).astype(int)
    set_bits = bits.sum(axis=1)
    different = set_bits[:, None] + set_bits - 2 * (bits.astype("float32") @ bits.T.astype("float32"))
    expected = np.argwhere(np.triu(different <= 50, k=1))
    assert len(expected) == 15 * 50
    found = np.concatenate([*similar_hashes(hashes)])
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_group_copies_gives_the_same_groups_however_few_pairs_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def group() -> list[list[str]]:
        photos = [
            Photo(str(number), "", sha256=str(number), perceptual_hash=value) for number, value in enumerate(hashes)
        ]
        return [[photo.name for photo in group] for group in copies.group_copies(photos)]

    hashes = hashes_with_near_copies()
    hashes += hashes[100:200]  # the same once more, in other files
    groups = group()
    assert len(groups) == 4500 - 15 * 50
    monkeypatch.setattr(copies, "MAX_PAIRS", 10)
    assert group() == groups
    assert copies.group_copies([]) == []


def test_prepare_excludes_copies_under_both_labels(project: Project) -> None:
    files = {
        f"{label}s/{n}.jpg": encode(scene(n + 50 * (label == "dog"))) for label in ("cat", "dog") for n in range(9)
    }
    project.photos(files | {"dogs/copy.jpg": encode(scene(0), quality=50)}, "folder")
    project.prepare()
    assert {project.row_of(name)["excluded"] for name in ("cats/0.jpg", "dogs/copy.jpg")} == {
        "the same photo stands under different labels"
    }


# --- what is skipped, and odd photos


def test_prepare_counts_what_it_skips_by_kind(project: Project) -> None:
    files = class_folders(8) | {
        "photos/notes.txt": b"",
        "photos/cats/clip.mp4": b"",
        "photos/.DS_Store": b"",
        "photos/x": b"",
    }
    project.photos(files, "folder")
    (project.root / "folder/photos/cats/gone.jpg").symlink_to("/nosuch/place.jpg")
    (project.root / "elsewhere").mkdir()
    (project.root / "folder/photos/more").symlink_to(project.root / "elsewhere")
    assert (
        "; skipped: 1 .mp4, 1 .txt, 1 dangling link, 1 hidden, 1 linked folder (photos/more), 1 without a suffix; "
        in last_line(project)
    )
    assert project.read_json("metrics/prepare.json")["skipped"]["dangling links"] == 1


def test_prepare_counts_pipes_and_sockets(project: Project) -> None:
    project.photos(class_folders(8), "folder")
    os.mkfifo(project.root / "folder/photos/cats/pipe.jpg")
    os.mkfifo(project.root / "folder/photos/pipe")
    (project.root / "folder/device.jpg").symlink_to("/dev/zero")
    assert "; skipped: 3 pipes, sockets or devices (device.jpg, photos/cats/pipe.jpg, photos/pipe); " in last_line(
        project
    )
    project.params["prepare"]["source"] = "folder/photos/pipe"
    project.write_params()
    expected = "folder/photos/pipe: is a pipe, socket or device; expected a file or folder"
    assert error_line(project.run("prepare.py")) == expected


# Root may read everything unless it gives up its capabilities.
AS_USER = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(AS_USER) and not shutil.which("setpriv"), reason="root may read everything")
def test_prepare_counts_folders_that_it_may_not_read(project: Project) -> None:
    project.photos(class_folders(8) | {"photos/cats/closed.jpg": photo_bytes("cat", 99)}, "folder")
    for name in ("lost+found", "birds", "fish"):
        (project.root / "folder" / name).mkdir()
    (project.root / "folder/fish/cat.98.jpg").write_bytes(photo_bytes("cat", 98))
    modes = {"folder/lost+found": 0, "folder/birds": 0, "folder/photos/cats/closed.jpg": 0, "folder/fish": 0o444}
    for name, mode in modes.items():
        (project.root / name).chmod(mode)
    project.write_params()
    command = [*AS_USER, sys.executable, str(REPOSITORY / "stages/prepare.py")]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    for name in modes:
        (project.root / name).chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "; 2 excluded: no permission to read it; skipped: 2 folders without permission to read (birds, lost+found); "
    ) in done.stdout


def named_otherwise(label: str) -> Files:
    """Photos of one class whose names do not say that they are photos, or in formats that few use."""
    images = [draw_photo(label, number, (160, 120)) for number in range(11)]
    named = {
        "1.jpe": encode(images[0]),
        "2.jpg_large": encode(images[1]),
        "3.jpg ": encode(images[2]),
        "4": encode(images[3], "PNG"),
        "5.ppm": encode(images[4], "PPM"),
        "6.pgm": encode(images[5].convert("L"), "PPM"),
        "7.tga": encode(images[6], "TGA"),
        "8.mpo": encode(images[7], "MPO"),
        "9.jp2": encode(images[8], "JPEG2000"),
        "10.webp~": encode(images[9], "WEBP"),
        "11": encode(images[10], "TIFF"),
    }
    return {f"photos/{label}s/{name}": content for name, content in named.items()}


NO_PHOTOS = {
    "photos/README": b"read me",
    "photos/cats/a.json": b"{}",
    "photos/cats/b.nef": encode(draw_photo("cat", 1), "TIFF"),  # a camera's raw photo begins like a TIFF
    "photos/cats/c.docx": in_zip({"media/1.jpg": photo_bytes("cat", 1)}),
    "photos/cats/d.txt": photo_bytes("cat", 2),
    "photos/fish.rar": b"Rar!",
    "photos/cats/e.mp4": b"\0\0\0\x18ftypisom",
    "photos/cats/Thumbs.db": b"\xd0\xcf\x11\xe0",
}


@pytest.mark.parametrize("source", ["folder", "data/raw/train.zip"])
def test_prepare_knows_photos_by_their_content(source: str, project: Project) -> None:
    files = named_otherwise("cat") | named_otherwise("dog")
    project.photos(files | NO_PHOTOS, source)
    project.split(train=14, validation=4, test=4)
    kinds = ".db, 1 .docx, 1 .json, 1 .mp4, 1 .nef, 1 .txt, 1 7z or RAR archive, to be extracted (photos/fish.rar), "
    kinds += "1 without a suffix"
    line = last_line(project)
    assert line.startswith("22 photos: 14 train, 4 validation, 4 test (11 cat, 11 dog); ")
    assert f"; skipped: 1 {kinds}; " in line
    pixels = project.pixels_of()
    for name in ("cats/4", "cats/5.ppm", "cats/7.tga", "dogs/11"):
        with Image.open(io.BytesIO(files[f"photos/{name}"])) as image:
            assert (pixels[name] == np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))).all()


GREY = np.asarray(scene(5).convert("L"))
# From black to white: what to do with numbers that may mean anything.
STRETCHED = np.rint((GREY - float(GREY.min())) * (255 / np.ptp(GREY))).astype(np.uint8)
GAPS = np.eye(*GREY.shape, dtype=bool)
WIDE_GREYS = {  # the same photo in other numbers, and in 8 bits
    "floats from 0 to 1": ((GREY / 255).astype(np.float32), GREY),
    "floats of degrees": ((GREY / 9 - 15).astype(np.float32), STRETCHED),
    "floats with gaps": (np.where(GAPS, np.nan, STRETCHED * 3.0).astype(np.float32), np.where(GAPS, 0, STRETCHED)),
    "32 bits that use 8": (GREY.astype(np.int32), GREY),
    "32 bits that use 16": (GREY.astype(np.int32) << 8, GREY),
    "32 bits that use 24": (GREY.astype(np.int32) << 16, STRETCHED),
    "32 bits with a sign": (GREY.astype(np.int32) - 128, STRETCHED),
    "16 bits that use 8": (GREY.astype(np.uint16), GREY),
    "16 bits that use 12": (GREY.astype(np.uint16) << 4 | 15, GREY),
    "16 bits": (GREY.astype(np.uint16) << 8 | 255, GREY),
    "0 and 1": ((GREY > 127).astype(np.int32), (GREY > 127) * np.uint8(255)),
}


@pytest.mark.parametrize("kind", WIDE_GREYS)
def test_wide_grey_is_scaled_to_8_bits(kind: str) -> None:
    values, grey = WIDE_GREYS[kind]
    decoded = decode(encode(Image.fromarray(values), "TIFF"), 64, "stretch").astype(int)
    expected = decode(encode(Image.fromarray(grey), "PNG"), 64, "stretch").astype(int)
    assert np.abs(decoded - expected).max() <= 1


def test_prepare_reads_jpeg_xl(project: Project) -> None:
    pytest.importorskip("pillow_jxl")
    files = {f"{label}s/{n}.jxl": encode(draw_photo(label, n), "JXL") for label in CLASSES for n in range(8)}
    project.photos({"cats/9": files.pop("cats/0.jxl")} | files, "folder")
    assert last_line(project).startswith("16 photos: 8 train, 4 validation, 4 test (8 cat, 8 dog); ")


def test_prepare_says_what_to_install_for_heic_and_jpeg_xl(project: Project, tmp_path: Path) -> None:
    blocked = "import sys\nsys.modules |= {'pillow_heif': None, 'pillow_jxl': None}\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    files = {"cats/1.heic": b"", "cats/2": b"\0\0\0\x18ftypheic", "dogs/3.jxl": b"\xff\x0a", "dogs/4.heic": b""}
    project.photos(files, "folder")
    project.write_params()
    assert error_line(project.run("prepare.py", env={"PYTHONPATH": str(tmp_path)})) == (
        "folder: contains no photos; it has 3 .heic, 1 .jxl; `pip install -r requirements/phones.txt && dvc repro "
        "--force prepare` to read HEIC and JPEG XL"
    )


def test_prepare_says_what_a_source_without_photos_holds(project: Project) -> None:
    project.photos({"cats/a.mp4": b"", "dogs/b.mp4": b"", "readme.txt": b""}, "folder")
    project.write_params()
    assert error_line(project.run("prepare.py")) == (
        "folder: contains no photos; it has 2 .mp4, 1 .txt; expected a folder or archive with photos"
    )


def zip_with_method(path: Path, files: Files, method: int) -> None:
    """A zip whose entries say that they are compressed by `method`."""
    write_zip(path, files, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            content[entry.header_offset + 8] = method
    start = content.find(b"PK\1\2")
    while start >= 0:
        content[start + 10] = method
        start = content.find(b"PK\1\2", start + 4)
    path.write_bytes(content)


def test_prepare_names_windows_deflate64(project: Project) -> None:
    project.photos(kaggle_files(cats=8, dogs=8))
    zip_with_method(project.root / "data/raw/train.zip", kaggle_files(cats=8, dogs=8), 9)
    project.write_params()
    line = error_line(project.run("prepare.py"))
    assert "16 excluded: compressed with Deflate64; re-zip it; " in line
    assert line.endswith("; fix the excluded photos or lower prepare.split")


ODD = {
    "cut off": (photo_bytes("cat", 1)[:-40], "file is cut off"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a git-lfs pointer; run `git lfs pull`"),
    "a web page": (b"<!DOCTYPE html><html>", "a web page, not a photo"),
    "text": (b"no photo at all", "not a photo, or damaged at its start"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("kind", ODD)
def test_prepare_says_in_plain_words_why_a_photo_cannot_be_read(kind: str, project: Project) -> None:
    content, reason = ODD[kind]
    project.photos(class_folders(9) | {"photos/cats/odd.jpg": content}, "folder")
    project.prepare()
    assert project.row_of("cats/odd.jpg")["excluded"] == reason


def with_exif(content: bytes, entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """A JPEG with an EXIF block of these entries: tag, type, count and value."""
    body = len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        body += (
            tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little") + value.ljust(4, b"\0")
        )
    exif = b"Exif\0\0II*\0\x08\0\0\0" + body + bytes(4)
    return content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]


@pytest.mark.parametrize("entry", [(0x11A, 2, 3, b"72\0"), (0x8825, 2, 2, b"0\0"), (0x829A, 5, 1, b"\xff" * 4)])
def test_prepare_turns_a_photo_upright_whatever_else_its_exif_holds(
    entry: tuple[int, int, int, bytes], project: Project
) -> None:
    photo = draw_photo("cat", 500)
    turned = encode(photo.transpose(Image.Transpose.ROTATE_90), quality=95)
    odd = with_exif(turned, sorted([(0x112, 3, 1, b"\6\0"), entry]))
    project.photos(
        class_folders(9) | {"photos/cats/odd.jpg": odd, "photos/dogs/9.jpg": photo_bytes("dog", 9)}, "folder"
    )
    project.params["prepare"]["split"] = {"train": 12, "validation": 4, "test": 4}
    project.prepare()
    upright = np.asarray(photo.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(project.pixels_of()["cats/odd.jpg"] - upright).mean() < 12


def test_prepare_decodes_a_large_photo_at_a_fraction_of_its_size(project: Project) -> None:
    large = scene(3).resize((1600, 1200), Image.Resampling.BICUBIC)
    large_file = {"photos/cats/large.jpg": encode(large, quality=95)}
    project.photos(class_folders(9) | large_file | {"photos/dogs/9.jpg": photo_bytes("dog", 9)}, "folder")
    project.params["prepare"]["split"] = {"train": 12, "validation": 4, "test": 4}
    project.prepare()
    expected = np.asarray(large.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(project.pixels_of()["cats/large.jpg"] - expected).max() < 8
