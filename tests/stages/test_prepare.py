"""The prepare stage as users see it: what `python stages/prepare.py` makes of a zip or a folder of photos."""

import hashlib
import io
import os
import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import prepare
from pipeline.photos import decoding, packing
from pipeline.photos.decoding import UnreadablePhoto
from tests.support import forked
from tests.support.photos import (
    CLASSES,
    Files,
    draw_photo,
    encode,
    imagefolder_files,
    kaggle_files,
    petimages_files,
    photo_bytes,
    write_zip,
)
from tests.support.projects import SPLITS, Project, error_line, prepare_with_cores

import numpy as np
import pytest
from PIL import Image

PACKED = tuple(f"{split}.safetensors" for split in SPLITS)
ORIENTATIONS = {  # the EXIF tag's value, and how numpy turns such a photo upright
    1: lambda photo: photo,
    2: np.fliplr,
    3: lambda photo: np.rot90(photo, 2),
    4: np.flipud,
    5: lambda photo: photo.transpose(1, 0, 2),
    6: lambda photo: np.rot90(photo, -1),
    7: lambda photo: np.rot90(photo, 2).transpose(1, 0, 2),
    8: lambda photo: np.rot90(photo, 1),
}


DAMAGED, NO_PHOTO = "damaged in its archive", "not a photo, or damaged at its start"


def squeezed(image: Image.Image, side: int = 32) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


# --- sources


@pytest.mark.parametrize("layout", [kaggle_files, petimages_files, imagefolder_files])
def test_prepare_gives_the_same_bytes_for_a_zip_and_a_folder_in_any_order(
    layout: Callable[[int, int], Files], prepared: Project, tmp_path: Path
) -> None:
    files = layout(10, 10)
    as_folder, as_zip = Project(tmp_path / "folder"), Project(tmp_path / "zip")
    as_folder.photos(files, "photos")
    top = next(iter(files)).split("/")[0]
    as_folder.params["prepare"]["source"] = f"photos/{top}"  # a folder further down makes no difference
    as_folder.prepare()
    mac = {"__MACOSX/train/._cat.0.jpg": b"resource fork", "train/.hidden.jpg": b"hidden"}
    shuffled = np.random.default_rng(0).permutation(list(files)).tolist()
    assert shuffled != sorted(shuffled)
    as_zip.photos({name: files[name] for name in shuffled} | mac)
    as_zip.prepare()

    assert as_zip.prepared_bytes() == as_folder.prepared_bytes()
    ours, theirs = as_zip.read_json("metrics/prepare.json"), as_folder.read_json("metrics/prepare.json")
    assert ours.pop("skipped")["hidden"] == theirs.pop("skipped").get("hidden", 0) + 2
    assert ours == theirs
    # The names of files and folders make no difference to the splits or to the pixels.
    reference = prepared.prepared_bytes()
    assert {name: as_zip.prepared_bytes()[name] for name in PACKED} == {name: reference[name] for name in PACKED}
    # Thumbs.db, hidden files and text files are skipped; every photo has its class.
    assert Counter(row["label"] for row in as_zip.split_table()) == {"cat": 10, "dog": 10}
    by_hash = {hashlib.sha256(content).hexdigest(): name for name, content in files.items()}
    for row in as_zip.split_table():
        assert by_hash[row["sha256"]].endswith(row["photo"])
        assert row["label"] in by_hash[row["sha256"]].lower()


def test_prepare_names_photos_from_their_deepest_common_folder_whatever_the_names_contain(project: Project) -> None:
    cats = ["cats/x, y.jpg", 'cats/"quoted".JPEG', "cats/Кот 猫.jpg", "cats/deep.er/cat.7.jpg"]
    dogs = ["DOG/1.jpg", "DOG/deeper/dogs/2.jpg", "x/dog.3.jpg", "cats/dogs/4.jpg"]
    files = {f"some/where/{name}": photo_bytes("cat", number) for number, name in enumerate(cats)}
    files |= {f"some/where/{name}": photo_bytes("dog", number) for number, name in enumerate(dogs)}
    project.photos(files)
    project.split(train=4, validation=2, test=2)
    project.prepare()
    assert {row["photo"]: row["label"] for row in project.split_table()} == {
        **dict.fromkeys(cats, "cat"),
        **dict.fromkeys(dogs, "dog"),
    }
    assert not any(row["excluded"] for row in project.split_table())


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "forks"), [(1, 0), (2, 4), (16, 32)])
def test_prepare_gives_the_same_bytes_on_any_number_of_cores(cores: int, forks: int, small: Project) -> None:
    expected = small.prepared_bytes()
    shutil.rmtree(small.root / "data/prepared")
    done = forked.run([prepare_with_cores(small.root, cores)], small.root, os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    noted = small.root / "forks"
    assert (noted.read_text().count("fork") if noted.exists() else 0) == (forks if sys.platform == "linux" else 0)
    assert small.prepared_bytes() == expected


def test_prepare_starts_no_processes_for_a_few_photos(project: Project) -> None:
    project.photos(kaggle_files(cats=10, dogs=10))
    project.write_params()
    assert forked.run([prepare_with_cores(project.root, 16)], project.root, os.environ).returncode == 0
    assert not (project.root / "forks").exists()


def test_prepare_replaces_a_photo_that_can_be_hashed_but_not_decoded(
    prepared: Project, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(content: bytes, size: int, resize: str) -> np.ndarray:
        if hashlib.sha256(content).hexdigest() == unlucky["sha256"]:
            raise UnreadablePhoto("damaged")
        return decoding.decode(content, size, resize)

    unlucky = next(row for row in prepared.split_table() if row["split"] == "test")
    monkeypatch.setattr(packing, "decode", decode)
    monkeypatch.setattr("sys.argv", ["prepare.py"])
    project.photos(kaggle_files(cats=10, dogs=10))
    project.write_params()
    monkeypatch.chdir(project.root)
    prepare.main()
    row = project.row_of(unlucky["photo"])
    assert (row["split"], row["excluded"]) == ("", "damaged")
    kept = [row for row in project.split_table() if row["split"]]
    assert Counter(row["split"] for row in kept) == {"train": 8, "validation": 4, "test": 4}
    before = prepared.pixels_of()
    both = [(pixels, before[photo]) for photo, pixels in project.pixels_of().items() if photo in before]
    assert len(both) > 12
    assert all((now == then).all() for now, then in both)


# --- the packed splits


def test_prepare_packs_splits_of_exactly_the_sizes_asked_for_with_equal_classes(prepared: Project) -> None:
    for split, size in {"train": 8, "validation": 4, "test": 4}.items():
        pixels, labels, description = prepared.packed(split)
        assert (pixels.shape, pixels.dtype) == ((size, 32, 32, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((size,), np.uint16)
        assert np.bincount(labels).tolist() == [size // 2, size // 2]
        split_id = prepared.packed("train")[2]["split_id"]
        assert description == {"classes": ["cat", "dog"], "image_size": 32, "resize": "stretch", "split_id": split_id}


def test_prepare_lists_every_photo_in_split_csv_in_the_order_of_the_packed_labels(prepared: Project) -> None:
    table = prepared.split_table()
    files = {name.removeprefix("train/"): content for name, content in kaggle_files(cats=10, dogs=10).items()}
    columns = ["photo", "label", "split", "sha256", "excluded", "relabelled_from", "copy_of", "width", "height"]
    assert list(table[0]) == columns
    assert sorted(row["photo"] for row in table) == sorted(files)
    assert [row["split"] for row in table] == ["train"] * 8 + ["validation"] * 4 + ["test"] * 4 + [""] * 4
    for row in table:
        assert row["label"] == row["photo"][:3]
        assert row["sha256"] == hashlib.sha256(files[row["photo"]]).hexdigest()
        assert row["excluded"] == ("" if row["split"] else "not needed")
        assert (row["width"], row["height"]) == ("40", "30")
    for split in SPLITS:
        labels = [CLASSES.index(row["label"]) for row in table if row["split"] == split]
        assert prepared.packed(split)[1].tolist() == labels


def test_prepare_squeezes_with_pillows_bilinear_resize_of_the_whole_photo(prepared: Project) -> None:
    files = kaggle_files(cats=10, dogs=10)
    packed = prepared.pixels_of()
    assert len(packed) == 16
    for name, pixels in packed.items():
        np.testing.assert_array_equal(pixels, squeezed(decoded(files[f"train/{name}"])), err_msg=name)


def test_prepare_counts_every_photo_in_its_summary(prepared: Project) -> None:
    counts = {"photos": 20, "train": 8, "validation": 4, "test": 4, "relabelled": 0, "misnamed": 0, "copies": 0}
    counts |= {"classes": {"cat": 8, "dog": 8}, "excluded": {"not needed": 4}, "skipped": {}}
    assert prepared.read_json("metrics/prepare.json") == counts
    printed = prepared.last_run.stdout
    assert re.fullmatch(
        r"note: fewer than 10 test photos of cat \(2\), dog \(2\); .*\n"
        r"20 photos: 8 train, 4 validation, 4 test \(8 cat, 8 dog\); 4 excluded: not needed; \d+ photos/s\n",
        printed,
    )
    assert prepared.last_run.stderr == ""


def test_prepare_writes_nothing_else(prepared: Project) -> None:
    assert sorted(prepared.prepared_bytes()) == sorted([*PACKED, "split.csv", "contact_sheet.png"])
    assert [path.name for path in (prepared.root / "metrics").iterdir()] == ["prepare.json"]


def test_prepare_shows_cats_and_dogs_of_each_split_on_a_contact_sheet(prepared: Project) -> None:
    with Image.open(prepared.root / "data/prepared/contact_sheet.png") as sheet:
        assert sheet.format == "PNG"
        shown = np.asarray(sheet.convert("RGB")).astype(int)
    redder = np.split(shown[..., 0] - shown[..., 2], len(SPLITS))  # one part below the other
    cat_area, dog_area = (
        [np.count_nonzero(part > 20) for part in sign] for sign in (redder, [-part for part in redder])
    )
    for part in redder:  # each split's first photo is a cat
        coloured_columns = part[:, np.any(abs(part) > 20, axis=0)]
        assert coloured_columns[:, 0].sum() > 0
    a_photo = cat_area[0] / 4
    assert a_photo > 32 * 32
    np.testing.assert_allclose(cat_area, [4 * a_photo, 2 * a_photo, 2 * a_photo], rtol=0.1)
    np.testing.assert_allclose(dog_area, [4 * a_photo, 2 * a_photo, 2 * a_photo], rtol=0.1)


def test_prepare_with_another_seed_gives_other_splits_of_the_same_sizes(prepared: Project, project: Project) -> None:
    project.photos(kaggle_files(cats=10, dogs=10))
    project.params["prepare"]["seed"] = 2
    project.prepare()
    assert [row["split"] for row in project.split_table()] == [row["split"] for row in prepared.split_table()]
    assert project.packed("test")[2]["split_id"] != prepared.packed("test")[2]["split_id"]
    for split in SPLITS:
        ours, theirs = (
            {row["photo"] for row in other.split_table() if row["split"] == split} for other in (project, prepared)
        )
        assert ours != theirs


# --- pixels


def unusual_photos() -> dict[str, tuple[bytes, np.ndarray]]:
    """Photos of every kind found in zips of photos: the bytes of each, and the RGB image that a person sees.

    Each shows something else: copies would be excluded.
    """
    photos = [draw_photo("cat", 100 + number) for number in range(14)]
    grey = np.asarray(photos[0].convert("L"))
    palette, other_palette = photos[1].quantize(16), photos[2].quantize(16)
    sixteen_bit = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 54 + 7
    see_through = photos[3].convert("RGBA")
    see_through.putalpha(Image.fromarray(np.where(np.arange(30)[:, None] < 15, 255, 0).repeat(40, 1).astype(np.uint8)))
    on_white = np.where(np.arange(30)[:, None, None] < 15, np.asarray(photos[3]), 255)
    transparent_palette = Image.new("P", (40, 30), 0)
    transparent_palette.putpalette([9, 9, 9, 200, 30, 60])
    transparent_palette.paste(1, (0, 0, 20, 30))
    on_white_palette = np.where(np.arange(40)[None, :, None] < 20, [200, 30, 60], 255) * np.ones((30, 1, 1), int)
    kinds = {
        "grey.png": (encode(photos[0].convert("L"), "PNG"), np.dstack([grey] * 3)),
        "palette.gif": (encode(palette, "GIF"), np.asarray(palette.convert("RGB"))),
        "palette.png": (encode(other_palette, "PNG"), np.asarray(other_palette.convert("RGB"))),
        "opaque rgba.png": (encode(photos[4].convert("RGBA"), "PNG"), np.asarray(photos[4])),
        "black and white.png": (
            encode(photos[5].convert("1"), "PNG"),
            np.dstack([np.asarray(photos[5].convert("1")) * 255] * 3),
        ),
        "sixteen bit.png": (encode(Image.fromarray(sixteen_bit), "PNG"), np.dstack([(sixteen_bit // 256)] * 3)),
        "transparent.png": (encode(see_through, "PNG"), on_white),
        "transparent palette.gif": (encode(transparent_palette, "GIF", transparency=0), on_white_palette),
        "upper case.PNG": (encode(photos[6], "PNG"), np.asarray(photos[6])),
        "a png by its content.jpg": (encode(photos[7], "PNG"), np.asarray(photos[7])),
        "lossless.webp": (encode(photos[8], "WEBP", lossless=True), np.asarray(photos[8])),
        "bitmap.bmp": (encode(photos[9], "BMP"), np.asarray(photos[9])),
        "scan.tiff": (encode(photos[10], "TIFF"), np.asarray(photos[10])),
        # Full ink of magenta and yellow, none of cyan and black, is red.
        "cmyk.jpg": (
            encode(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), quality=100),
            np.full((30, 40, 3), (255, 0, 0)),
        ),
    }
    for orientation, upright in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        as_jpeg = encode(draw_photo("cat", 50 + orientation), exif=exif)
        kinds[f"orientation {orientation}.jpg"] = (as_jpeg, upright(np.asarray(decoded(as_jpeg))))
        as_png = encode(draw_photo("dog", 50 + orientation), "PNG", exif=exif)
        kinds[f"orientation {orientation}.png"] = (as_png, upright(np.asarray(draw_photo("dog", 50 + orientation))))
    return kinds


UNUSUAL = unusual_photos()


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with `UNUSUAL`, prepared. Read only."""
    project = Project(tmp_path_factory.mktemp("unusual"))
    photos = {f"cats/{name}": content for name, (content, _) in UNUSUAL.items()}
    files = photos | {f"dogs/{number}.jpg": photo_bytes("dog", number) for number in range(len(photos) + 1)}
    project.photos(files, "photos")
    project.split(train=2 * len(photos) - 4, validation=2, test=2)
    project.prepare()
    return project


@pytest.fixture(scope="module")
def unusual_pixels(unusual: Project) -> dict[str, np.ndarray]:
    """The packed pixels of `UNUSUAL`, by the photo's name."""
    return {name.removeprefix("cats/"): pixels for name, pixels in unusual.pixels_of().items()}


def test_split_csv_has_the_size_of_the_upright_photo_in_full(unusual: Project) -> None:
    found = {row["photo"]: f"{row['width']} x {row['height']}" for row in unusual.split_table()}
    for name, (_, upright) in UNUSUAL.items():
        assert found[f"cats/{name}"] == f"{upright.shape[1]} x {upright.shape[0]}"


@pytest.mark.parametrize("name", UNUSUAL)
def test_prepare_packs_a_photo_as_the_upright_rgb_image_that_a_person_sees(
    name: str, unusual_pixels: dict[str, np.ndarray]
) -> None:
    expected = squeezed(Image.fromarray(UNUSUAL[name][1].astype(np.uint8)))
    tolerance = 2 if name == "cmyk.jpg" else 0  # JPEG's colours are not exact
    np.testing.assert_allclose(unusual_pixels[name].astype(int), expected.astype(int), rtol=0, atol=tolerance)


def test_prepare_center_crops_without_distortion(project: Project) -> None:
    # At 56 pixels a side, a photo's shorter side becomes 64: photos of that size are cropped and not scaled.
    sizes = {"wide": (101, 64), "tall": (64, 100), "square": (64, 64), "twice as large": (200, 128), "small": (32, 40)}
    photos = {name: draw_photo("cat", number, size) for number, (name, size) in enumerate(sizes.items())}
    photos["wide"] = photos["wide"].crop((0, 0, 100, 64))
    files = {f"cats/{name}.png": encode(photo, "PNG") for name, photo in photos.items()}
    files |= {f"dogs/{number}.jpg": photo_bytes("dog", number) for number in range(5)}
    project.photos(files)
    project.params["prepare"] |= {"image_size": 56, "resize": "center_crop"}
    project.split(train=6, validation=2, test=2)
    project.prepare()
    packed = project.pixels_of()

    np.testing.assert_array_equal(packed["cats/wide.png"], np.asarray(photos["wide"])[4:60, 22:78])
    np.testing.assert_array_equal(packed["cats/tall.png"], np.asarray(photos["tall"])[22:78, 4:60])
    np.testing.assert_array_equal(packed["cats/square.png"], np.asarray(photos["square"])[4:60, 4:60])
    for name, scaled_size in {"twice as large": (100, 64), "small": (64, 80)}.items():
        scaled = photos[name].resize(scaled_size, Image.Resampling.BILINEAR)
        left, top = (scaled_size[0] - 56) // 2, (scaled_size[1] - 56) // 2
        expected = np.asarray(scaled)[top : top + 56, left : left + 56].astype(int)
        np.testing.assert_allclose(packed[f"cats/{name}.png"].astype(int), expected, atol=1)
    for split in SPLITS:
        assert (project.packed(split)[2]["image_size"], project.packed(split)[2]["resize"]) == (56, "center_crop")


# --- equal photos, and unusable ones


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prepare_never_puts_equal_photos_into_two_splits(seed: int, project: Project) -> None:
    copies = dict(enumerate([4, 3, 3, 2, 2, 2] + 12 * [1]))
    files = {
        f"{copy}/{label}.{number}.jpg": photo_bytes(label, number)
        for label in CLASSES
        for number, count in copies.items()
        for copy in range(count)
    }
    project.photos(dict(reversed(files.items())))
    project.params["prepare"]["seed"] = seed
    project.split(train=24, validation=6, test=6)
    project.prepare()
    table = project.split_table()
    for sha256 in {row["sha256"] for row in table}:
        group = [row for row in table if row["sha256"] == sha256]
        used = [row["split"] for row in group if row["split"]]
        assert len(set(used)) <= 1
        assert len(used) in ((0, len(group)) if "train" in used else (0, 1))  # validation and test use one of them
        names = [row["photo"] for row in group if row["split"] == "train"]
        assert names == sorted(names)  # the order in the archive, reversed here, decides nothing
    assert max(Counter(row["sha256"] for row in table if row["split"] == "train").values()) >= 2
    assert Counter(row["split"] for row in table) == {"train": 24, "validation": 6, "test": 6, "": len(files) - 36}
    pixels = project.pixels_of()
    for row in table:
        if row["split"]:
            np.testing.assert_array_equal(pixels[row["photo"]], squeezed(decoded(files[row["photo"]])))


def damaged_zip(path: Path, files: Files, broken_checksum: str, broken_stream: str) -> None:
    """A zip in which one entry's checksum is wrong and another's compressed bytes are damaged."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if name == broken_stream else zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for name, damage in {broken_checksum: b"\0\0\0\0", broken_stream: b"\xff\xff\xff\xff"}.items():
            if name:
                start = archive.getinfo(name).header_offset + 30 + len(name)
                content[start : start + 4] = damage
    path.write_bytes(content)


def test_prepare_excludes_unusable_photos_with_the_reason(project: Project) -> None:
    whole = photo_bytes("cat", 50)
    unreadable = {
        "t/cat.50.jpg": whole[: len(whole) // 2],
        "t/cat.51.jpg": b"I am text, not a photo.",
        "t/dog.52.jpg": b"",
        "t/dog.53.png": encode(draw_photo("dog", 53), "PNG")[:-200],
    }
    both_labels = {f"t/{name}.jpg": photo_bytes("cat", 60) for name in ("cat.60", "cat.61", "dog.60")}
    no_label = {
        f"t/{name}": photo_bytes("dog", number) for number, name in enumerate(("bird.0.jpg", "1.jpg"), start=70)
    }
    broken = {"t/cat.80.jpg": photo_bytes("cat", 80)}
    usable = {f"t/{label}.{number}.jpg": photo_bytes(label, number) for label in CLASSES for number in range(8)}
    (project.root / "data").mkdir(exist_ok=True)
    damaged_zip(
        project.root / "data/photos.zip", unreadable | both_labels | no_label | broken | usable, "t/cat.80.jpg", ""
    )
    project.params["prepare"]["source"] = "data/photos.zip"
    result = project.prepare()

    assert result.stderr == ""  # the splits are full, so there is nothing to warn about
    table = {row["photo"]: row for row in project.split_table()}
    assert len(table) == 26
    assert {name for name, row in table.items() if row["split"]} == {name.removeprefix("t/") for name in usable}
    for name in both_labels:
        assert table[name.removeprefix("t/")]["excluded"] == "the same photo stands under different labels"
    for name in no_label:
        assert table[name.removeprefix("t/")]["excluded"] == "no class by its folder, its file name or the table"
        assert table[name.removeprefix("t/")]["label"] == ""
    for name in unreadable | broken:
        assert table[name.removeprefix("t/")]["excluded"] in {"file is cut off", "empty", "damaged", DAMAGED, NO_PHOTO}
    reasons = Counter(row["excluded"] for row in table.values() if not row["split"])
    assert sum(reasons.values()) == 10
    assert project.read_json("metrics/prepare.json")["excluded"] == dict(reasons)


def test_prepare_excludes_a_damaged_compressed_entry_as_unreadable(project: Project) -> None:
    (project.root / "data").mkdir(exist_ok=True)
    damaged_zip(project.root / "data/photos.zip", kaggle_files(cats=9, dogs=8), "", "train/cat.8.jpg")
    project.params["prepare"]["source"] = "data/photos.zip"
    project.prepare()
    assert project.row_of("cat.8.jpg")["excluded"] == DAMAGED
    assert [row["split"] for row in project.split_table()].count("") == 1


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_prepare_excludes_only_the_photo_whose_unpacking_fails(compression: int, project: Project) -> None:
    files = kaggle_files(cats=9, dogs=8)
    write_zip(project.root / "photos.zip", files, compression)
    content = bytearray((project.root / "photos.zip").read_bytes())
    with zipfile.ZipFile(project.root / "photos.zip") as archive:
        start = archive.getinfo("train/cat.8.jpg").header_offset + 30 + len("train/cat.8.jpg")
    content[start + 20 : start + 60] = bytes(range(40))
    (project.root / "photos.zip").write_bytes(content)
    project.params["prepare"]["source"] = "photos.zip"
    project.prepare()
    assert project.row_of("cat.8.jpg")["excluded"] == DAMAGED


def test_prepare_shows_no_warnings_of_pillow(project: Project) -> None:
    tiff = encode(draw_photo("cat", 90), "TIFF")
    samples_per_pixel = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # the tag, its type and count, before its value
    assert tiff.count(samples_per_pixel + b"\x03\x00") == 1
    damaged = tiff.replace(samples_per_pixel + b"\x03\x00", samples_per_pixel + b"\xff\xff")
    project.photos(kaggle_files(cats=8, dogs=8) | {"train/cat.90.jpg": damaged})
    project.split(train=8, validation=4, test=4)
    assert project.prepare().stderr == ""


@pytest.mark.slow
def test_prepare_takes_extreme_shapes_and_excludes_decompression_bombs(project: Project) -> None:
    black = {size: encode(Image.new("L", size), "PNG") for size in ((1, 1), (20_000, 1), (20_000, 20_000))}
    files = kaggle_files(cats=8, dogs=10) | {
        "train/cat.90.jpg": black[1, 1],
        "train/cat.91.jpg": black[20_000, 1],
        "train/cat.92.jpg": black[20_000, 20_000],  # a decompression bomb: small as a file, and 400 million pixels
    }
    project.photos(files)
    project.split(train=12, validation=4, test=4)
    project.prepare()
    assert {project.row_of(f"cat.{number}.jpg")["split"] != "" for number in (90, 91)} == {True}
    assert project.row_of("cat.92.jpg")["excluded"] == "more than 220 megapixels"


def test_prepare_does_not_unpack_an_entry_too_large_for_a_photo(project: Project) -> None:
    files = kaggle_files(cats=8, dogs=8) | {"train/cat.90.jpg": bytes(2**28 + 1)}
    project.photos(files)
    project.prepare()
    assert project.row_of("cat.90.jpg")["excluded"] == "unreadable (more than 256 MiB)"


def test_prepare_writes_nothing_outside_for_odd_names_and_links_in_an_archive(project: Project) -> None:
    usable = kaggle_files(cats=8, dogs=8)
    odd = {"../../above/cat.90.jpg": photo_bytes("cat", 90), "/absolute/dog.90.jpg": photo_bytes("dog", 90)}
    project.photos(usable | odd)
    with zipfile.ZipFile(project.root / "data/raw/train.zip", "a") as archive:
        link = zipfile.ZipInfo("train/cat.91.jpg")
        link.external_attr = 0o120777 << 16  # a symbolic link
        archive.writestr(link, "/etc/passwd")
    outside = {path for path in project.root.parent.rglob("*") if project.root not in path.parents}
    project.prepare()
    assert {path for path in project.root.parent.rglob("*") if project.root not in path.parents} == outside
    [link] = [row for row in project.split_table() if row["photo"].endswith("cat.91.jpg")]
    assert link["excluded"] == NO_PHOTO
    labels = {row["photo"]: row["label"] for row in project.split_table() if "90" in row["photo"]}
    assert sorted(labels.values()) == ["cat", "dog"]


def test_prepare_writes_one_row_per_photo_whatever_its_name_contains(project: Project) -> None:
    odd = {"train/a\rb/cat.90.jpg": photo_bytes("cat", 90), "./train/dog.0.jpg": photo_bytes("dog", 90)}
    project.photos(kaggle_files(cats=8, dogs=8) | odd)
    project.prepare()
    names = [row["photo"] for row in project.split_table()]
    assert len(names) == len(set(names)) == 18
    assert {"a\\rb/cat.90.jpg", "dog.0.jpg", "(2)/dog.0.jpg"} <= set(names)  # ./train/dog.0.jpg is train/dog.0.jpg


def test_prepare_reads_two_layouts_in_one_archive(project: Project) -> None:
    files = petimages_files(cats=8, dogs=8)
    others = {name: content for name, content in files.items() if Path(name).stem in "4567"}  # no copies
    project.photos(kaggle_files(cats=4, dogs=4) | others)
    project.prepare()
    assert Counter(row["label"] for row in project.split_table()) == {"cat": 8, "dog": 8}


def test_prepare_says_that_an_archive_is_encrypted(project: Project) -> None:
    project.photos(kaggle_files(cats=8, dogs=8))
    path = project.root / "data/raw/train.zip"
    content = path.read_bytes()
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # each entry's header, and its copy in the directory
        parts = content.split(signature)
        content = parts[0] + b"".join(
            signature + part[: flags - 4] + bytes([part[flags - 4] | 1]) + part[flags - 3 :] for part in parts[1:]
        )
    path.write_bytes(content)
    project.write_params()
    assert "16 excluded: encrypted in its source" in error_line(project.run("prepare.py"))


# --- corrections


def test_prepare_excludes_and_relabels_photos_as_corrections_say(prepared: Project, project: Project) -> None:
    """20 photos for 16 places: the others of that class move up by one place, and none of the other class moves."""
    project.photos(kaggle_files(cats=10, dogs=10))
    before = {row["photo"]: row["split"] for row in prepared.split_table()}
    cats, dogs = ([name for name in before if name.startswith(label) and before[name] == "test"] for label in CLASSES)
    project.correct("# mine", "", f"{cats[0]}: leave out  # a sketch: of a cat", f"{dogs[0]} :cat", f"{dogs[1]}: dog")
    held = "20 photos: 8 train, 4 validation, 4 test (8 cat, 8 dog)"
    counts = f"{held}; 1 relabelled; 1 excluded: named in data/corrections.txt; "
    assert project.prepare().stdout.splitlines()[-1].startswith(counts)
    row = project.row_of(cats[0])
    assert (row["split"], row["excluded"]) == ("", "named in data/corrections.txt")
    assert {name: project.row_of(dogs[0])[name] for name in ("label", "split", "relabelled_from")} == {
        "label": "cat",
        "split": "test",
        "relabelled_from": "dog",
    }
    summary = project.read_json("metrics/prepare.json")
    assert summary["relabelled"] == 1
    assert summary["excluded"]["named in data/corrections.txt"] == 1
    corrected = {cats[0], dogs[0]}
    moved = {
        row["photo"]
        for row in project.split_table()
        if row["photo"] not in corrected and row["split"] != before[row["photo"]]
    }
    assert len(moved) <= 3  # a dog from each split to the one before
    assert all(name.startswith("dog") for name in moved)
    assert project.packed("train")[2]["split_id"] != prepared.packed("train")[2]["split_id"]


def test_prepare_follows_corrections_of_photos_with_both_labels_or_neither(project: Project) -> None:
    files = kaggle_files(cats=7, dogs=7)
    files |= {"train/cat.90.jpg": photo_bytes("dog", 90), "train/dog.90.jpg": photo_bytes("dog", 90)}
    files |= {"train/odd/#1: x.jpg": photo_bytes("cat", 91), "train/cat.91.jpg": b"no photo"}
    project.photos(files)
    project.correct("cat.90.jpg: leave out", "odd/#1: x.jpg: cat", "cat.91.jpg: leave out")
    project.prepare()
    assert project.row_of("dog.90.jpg")["excluded"] == ""
    odd = project.row_of("odd/#1: x.jpg")
    assert (odd["label"], odd["relabelled_from"], odd["excluded"]) == ("cat", "no class", "")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["cat.1: leave out"], "line 1: there is no photo cat.1; expected a name as in split.csv, such as cat.1.jpg"),
        (
            ["#", "cat.1.jpg: remove"],
            "line 2: 'cat.1.jpg: remove' is not a correction; expected a photo's name, a colon, and leave out "
            "or a class (cat, dog), such as cat.0.jpg: leave out",
        ),
        (
            ["cat.1.jpg"],
            "line 1: 'cat.1.jpg' is not a correction; expected a photo's name, a colon, and leave out or a "
            "class (cat, dog), such as cat.0.jpg: leave out",
        ),
        (
            ["cat.1.jpg: dog", "cat.1.jpg: dog", "cat.1.jpg: leave out"],
            "line 3: cat.1.jpg is 'leave out' here, but 'dog' in line 1; delete one of the two",
        ),
    ],
)
def test_prepare_names_a_correction_that_it_cannot_follow(lines: list[str], expected: str, project: Project) -> None:
    project.photos(kaggle_files(cats=8, dogs=8))
    project.correct(*lines)
    project.write_params()
    assert error_line(project.run("prepare.py")).startswith(f"data/corrections.txt, {expected}")
    assert list(project.results()) == []


def test_prepare_counts_a_correction_only_if_the_photo_is_in_a_split(project: Project) -> None:
    """A relabelled photo has both labels if an equal one is not relabelled too."""
    files = kaggle_files(cats=12, dogs=12)
    project.photos(files | {"train/cat.11.jpg": files["train/cat.10.jpg"], "train/dog.11.jpg": b""})
    project.correct("cat.10.jpg: dog", "dog.11.jpg: leave out")
    project.prepare()
    assert project.row_of("cat.10.jpg")["excluded"] == "the same photo stands under different labels"
    assert project.row_of("dog.11.jpg")["excluded"] == "named in data/corrections.txt"
    assert project.read_json("metrics/prepare.json")["relabelled"] == 0


def test_prepare_says_how_to_get_photos_that_dvc_tracks_but_that_are_not_here(project: Project) -> None:
    (project.root / "data/raw").mkdir(parents=True)
    for tracked, source in (("data/raw/photos", "data/raw/photos/train"), ("data/raw/all.zip", "data/raw/all.zip")):
        (project.root / f"{tracked}.dvc").touch()
        project.params["prepare"]["source"] = source
        project.write_params()
        message = f"{source}: is not here yet, but {tracked}.dvc is; run `dvc pull {tracked}`"
        assert error_line(project.run("prepare.py")) == message


def test_prepare_refuses_corrections_that_are_missing_or_not_text(project: Project) -> None:
    project.photos(kaggle_files(cats=8, dogs=8))
    project.write_params()
    path = project.root / "data/corrections.txt"
    path.write_bytes("Кот.jpg: cat".encode("cp1251"))
    assert error_line(project.run("prepare.py")) == "data/corrections.txt is not UTF-8 text; save it as UTF-8"
    path.unlink()
    assert error_line(project.run("prepare.py")).startswith("data/corrections.txt does not exist; create it, empty if")


# --- too few photos


def test_prepare_shrinks_train_by_at_most_one_percent_with_a_warning(project: Project) -> None:
    files = kaggle_files(cats=104, dogs=104) | {"train/cat.0.jpg": b"no photo"}
    project.photos(files, "photos")
    project.split(train=200, validation=4, test=4)
    warning = project.prepare().stderr
    assert warning.startswith("warning: photos: of 208 photos, train got 198 of 200, validation got 4 of 4, test got 4")
    assert warning.count("\n") == 1
    assert [len(project.packed(split)[1]) for split in SPLITS] == [198, 4, 4]
    assert np.bincount(project.packed("train")[1]).tolist() == [99, 99]
    before = project.prepared_bytes()
    summary = project.read_json("metrics/prepare.json")
    assert (summary["train"], sum(summary["excluded"].values())) == (198, 2)

    for number in (1, 2):
        (project.root / f"photos/train/cat.{number}.jpg").write_bytes(b"no photo")
    text = error_line(project.run("prepare.py"))
    assert text.startswith("too few photos: photos: of 208 photos, train got 197 of 200, validation got 4 of 4")
    assert f"3 excluded: {NO_PHOTO}" in text
    assert "found 104 cat, 104 dog; fix the excluded photos or lower prepare.split" in text
    assert project.prepared_bytes() == before  # so no *.partial either
    assert project.read_json("metrics/prepare.json") == summary


@pytest.mark.parametrize(
    ("cats", "dogs", "advice"),
    [
        (10, 0, "add photos of dog, or change classes in params.yaml"),
        (3, 10, "prepare.split in params.yaml needs 16; lower it, set shares such as 0.2, or add photos"),
        (
            30,
            10,
            "prepare.split in params.yaml needs 208, of which train may have 2 fewer; lower it, set shares such as "
            "0.2, or add photos",
        ),
    ],
)
def test_prepare_counts_the_photos_if_there_are_too_few_and_writes_nothing(
    cats: int, dogs: int, advice: str, project: Project
) -> None:
    project.photos(kaggle_files(cats, dogs))
    if cats + dogs > 16:
        project.split(train=200, validation=4, test=4)
    project.write_params()
    assert error_line(project.run("prepare.py")) == f"data/raw/train.zip: found {cats} cat, {dogs} dog; {advice}"
    assert not (project.root / "data/prepared").exists()
    assert not (project.root / "metrics").exists()


def test_prepare_refuses_a_share_for_which_the_numbers_of_other_splits_leave_too_few_photos(project: Project) -> None:
    project.photos(kaggle_files(20, 20))
    project.split(train=0.9, validation=8, test=8)
    project.write_params()
    assert error_line(project.run("prepare.py")) == (
        "params.yaml: prepare.split: train 0.9 of 40 photos is 36, but validation 8 and test 8 leave 24; lower one of "
        "them"
    )
    project.split(train=0.6, validation=8, test=8)
    project.write_params()
    project.succeed("prepare.py")
    assert project.read_json("metrics/prepare.json")["train"] == 24


def test_prepare_counts_photos_without_a_class_and_names_one(project: Project) -> None:
    project.photos({f"birds/{number}.jpg": photo_bytes("cat", number) for number in range(12)})
    project.write_params()
    text = error_line(project.run("prepare.py"))
    assert text.startswith(
        "data/raw/train.zip: found 0 cat, 0 dog, and 12 photos without a class, such as birds/0.jpg; name the folders "
        "cat, dog, or set classes in params.yaml to your own or to auto"
    )


# --- sources without photos


def no_source(path: Path) -> None:
    pass


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def a_folder_without_photos(path: Path) -> None:
    (path / "cats").mkdir(parents=True)
    (path / "cats/Thumbs.db").write_bytes(b"thumbs")


def a_text_file(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def an_empty_file(path: Path) -> None:
    path.touch()


def a_zip_of_a_future_version(path: Path) -> None:
    """Its first entry requires a version of the format that does not exist."""
    write_zip(path, kaggle_files(cats=2, dogs=2))
    path.write_bytes(path.read_bytes().replace(b"PK\1\2\x14\x03\x14", b"PK\1\2\x14\x03\xff", 1))


def half_a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kaggle_files(cats=2, dogs=2).items():
            archive.writestr(name, content)
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (no_source, "no such file"),
        (an_empty_folder, "no photos"),
        (a_folder_without_photos, "no photos"),
        (a_text_file, "is a web page, not an archive"),
        (an_empty_file, "zip"),
        (half_a_zip, "zip"),
        (a_zip_of_a_future_version, "zip file version 25.5"),
    ],
)
def test_prepare_names_a_source_without_photos_in_one_line(
    make: Callable[[Path], None], expected: str, project: Project
) -> None:
    make(project.root / "the source")
    project.params["prepare"]["source"] = "the source"
    project.write_params()
    text = error_line(project.run("prepare.py"))
    assert text.startswith("the source: ")
    assert expected in text
    assert list(project.results()) == []
