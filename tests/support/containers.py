"""Photos in containers of every kind that prepare reads: zips, tars and Parquet files, also inside one another."""

import gzip
import io
import json
import tarfile
import warnings
import zipfile
from pathlib import Path

from tests.support.photos import CLASSES, Files, photo_bytes, write_zip

import pytest


def as_zip_of_zips(folder: Path, files: Files) -> Path:
    """As Kaggle's "Download all": an archive of train.zip, test1.zip and a CSV."""
    inner, unlabelled = io.BytesIO(), io.BytesIO()
    write_archive(inner, files)
    write_archive(unlabelled, {f"test1/{n}.jpg": photo_bytes("dog", 100 + n) for n in range(1, 4)})
    outer = {"sampleSubmission.csv": b"id,label\n", "test1.zip": unlabelled.getvalue(), "train.zip": inner.getvalue()}
    write_zip(folder / "all.zip", outer)
    return folder / "all.zip"


def as_folder_of_zips(folder: Path, files: Files) -> Path:
    """As a cloud drive hands out a large folder: in parts."""
    for part in (0, 1):
        write_zip(folder / f"parts/photos-00{part + 1}.zip", dict(list(files.items())[part::2]))
    return folder / "parts"


def as_tar(folder: Path, files: Files, suffix: str = ".tgz", mode: str = "w:gz") -> Path:
    path = folder / f"photos{suffix}"
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def as_plain_tar(folder: Path, files: Files) -> Path:
    return as_tar(folder, files, ".data", "w")  # its content tells, not its name


def as_zip_without_suffix(folder: Path, files: Files) -> Path:
    write_zip(folder / "download", files)
    return folder / "download"


def as_windows_zip(folder: Path, files: Files) -> Path:
    """With backslashes, in spite of the format."""
    write_zip(folder / "windows.zip", {name.replace("/", "\\"): content for name, content in files.items()})
    return folder / "windows.zip"


def as_archives_of_one_name(folder: Path, files: Files) -> Path:
    """As an export for each year, whose numbers start again."""
    for year, first in (("2023", 0), ("2024", 4)):
        inner = {f"{label}.{n}.jpg": files[f"train/{label}.{first + n}.jpg"] for label in CLASSES for n in range(4)}
        write_zip(folder / f"years/{year}/photos.zip", inner)
    return folder / "years"


def as_zip_with_a_name_for_four_photos(folder: Path, files: Files) -> Path:
    """Spelled alike or not."""
    with zipfile.ZipFile(folder / "names.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label in CLASSES:
            for number in range(8):
                spelling = ("train/{}.{}.jpg", "./train/{}.{}.jpg", "train//{}.{}.jpg", "train\\{}.{}.jpg")[number // 2]
                archive.writestr(spelling.format(label, number % 2), files[f"train/{label}.{number}.jpg"])
    return folder / "names.zip"


def as_zip_in_tar_in_zip(folder: Path, files: Files) -> Path:
    inner = io.BytesIO()
    write_archive(inner, files)
    tar = as_tar(folder, {"a/photos.zip": inner.getvalue(), "__MACOSX/a/._photos.zip": b"resource fork"})
    write_zip(folder / "all.zip", {"b/photos.tgz": tar.read_bytes(), "b/names.csv.gz": gzip.compress(b"a,b")})
    return folder / "all.zip"


def as_tar_with_links(folder: Path, files: Files) -> Path:
    """As rsync's copies share files: a photo that is in the tar already is stored as a link."""
    path = as_tar(folder, {name.replace("train", "2023"): content for name, content in files.items()}, ".tar", "w")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    with tarfile.open(path, "a") as archive:
        for member, kind in zip(members, 8 * [tarfile.LNKTYPE, tarfile.SYMTYPE], strict=True):
            link = tarfile.TarInfo(member.name.replace("2023", "2024"))
            link.type, link.linkname = kind, member.name if kind == tarfile.LNKTYPE else f"../{member.name}"
            archive.addfile(link)
    return path


def as_parquet(folder: Path, files: Files) -> Path:
    """As Hugging Face publishes image data sets."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = [int("dog" in name) for name in files]
    table = pa.table({"image": [{"bytes": content, "path": None} for content in files.values()], "labels": labels})
    features = {"labels": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (folder / "data").mkdir()
    pq.write_table(table, folder / "data/train-00000-of-00001.parquet")
    return folder / "data"


def write_archive(file: io.BytesIO, files: Files) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


CONTAINERS = [
    as_zip_of_zips,
    as_folder_of_zips,
    as_tar,
    as_plain_tar,
    as_zip_without_suffix,
    as_windows_zip,
    as_archives_of_one_name,
    as_zip_with_a_name_for_four_photos,
    as_zip_in_tar_in_zip,
    as_parquet,
]
