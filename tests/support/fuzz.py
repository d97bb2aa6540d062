"""Feed `prepare` damaged photos, archives and params: it must succeed, or refuse them.

Usage: python tests/support/fuzz.py [PHOTOS ARCHIVES PARAMS [SEED]], the number of each; by default 10000 2000 2000 1
To refuse means to end with one error line, or with a line for each mistake in params.yaml, and to leave nothing behind.
Each case runs the stage in its own process. Prints how the runs of each kind ended. Cases that broke the stage are kept
in a folder, which is printed, and then the exit status is 1.
"""

import gc
import importlib
import io
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / folder) for folder in (".", "stages", "demo")]
import prepare  # noqa: E402
from pipeline.core.process import run_stage  # noqa: E402
from tests.support.photos import CLASSES, draw_photo, encode, kaggle_files, photo_bytes  # noqa: E402
from tests.support.projects import Project  # noqa: E402

# What `prepare` imports only once its params are read, so that each fork need not.
for name in ("contact_sheet", "corrections", "hashing", "labels", "packing", "source", "splits", "summary", "table"):
    importlib.import_module(f"pipeline.photos.{name}")
for name in ("pandas.io.formats.csvs", "scipy.fftpack"):
    importlib.import_module(name)
gc.freeze()  # or each fork would copy the memory that it looks at

LONGEST_RUN_S = 60
PHOTOS_AT_ONCE = 500


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Damage at a few random places: bits flipped; bytes set to extremes, replaced, cut out, doubled or cut off."""
    damaged = bytearray(content)
    for _ in range(random.integers(1, 6)):
        if not damaged:
            break
        place = int(random.integers(len(damaged)))
        length = int(random.integers(1, 1 + min(32, len(damaged) - place)))
        match random.integers(6):
            case 0:
                damaged[place] ^= 1 << int(random.integers(8))
            case 1:
                damaged[place : place + length] = bytes([random.choice([0, 1, 127, 128, 255])]) * length
            case 2:
                damaged[place : place + length] = random.bytes(length)
            case 3:
                del damaged[place : place + length]
            case 4:
                damaged[place:place] = damaged[place : place + length]
            case 5 if random.integers(4) == 0:
                del damaged[place:]
    return bytes(damaged)


def damaged_photos(project: Project, random: np.random.Generator) -> None:
    """An archive of PHOTOS_AT_ONCE damaged photos in several formats and a few good ones; splits for all of them or
    for a fifth.
    """
    files = kaggle_files(cats=10, dogs=10)
    for number in range(PHOTOS_AT_ONCE):
        label = CLASSES[number % 2]
        image = draw_photo(label, number % 50)
        if number % 3 == 0:
            content = encode(image, str(random.choice(["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"])))
        else:
            mode = str(random.choice(["RGB", "L", "CMYK"]))
            content = encode(image.convert(mode), "JPEG", progressive=bool(random.integers(2)))
        files[f"train/{label}.{1000 + number}.jpg"] = mutate(content, random)
    project.photos(files)
    project.split(train=int(random.choice([PHOTOS_AT_ONCE, PHOTOS_AT_ONCE // 5])), validation=4, test=4)
    project.params["prepare"]["resize"] = str(random.choice(["stretch", "center_crop"]))
    project.write_params()


def damaged_archive(project: Project, random: np.random.Generator) -> None:
    """A damaged archive of some kind, perhaps inside another one or next to a photo."""
    files = kaggle_files(cats=9, dogs=9)
    if random.integers(2):  # cats/0 instead of cat.0.jpg: known to be photos by their content
        files = {re.sub(r"(\w+)\.(\d+)\.jpg", r"\1s/\2", name): content for name, content in files.items()}
    buffer = io.BytesIO()
    kind = random.integers(3)
    if kind == 0:
        with zipfile.ZipFile(buffer, "w", int(random.choice([0, 8, 12, 14]))) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content, archive.compression)
    elif kind == 1:
        with tarfile.open(fileobj=buffer, mode=str(random.choice(["w", "w:gz", "w:bz2", "w:xz"]))) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        labels = [int("dog" in name) for name in files]
        table = pa.table({"image": [{"bytes": content} for content in files.values()], "label": labels})
        pq.write_table(table, buffer)
    damaged = mutate(buffer.getvalue(), random)
    suffix = (".zip", ".tgz", ".parquet")[kind]
    if random.integers(3):
        project.photos({"cat.0.jpg": b""})  # makes the folder
        (project.root / "data/raw/train.zip").write_bytes(damaged)
    else:
        beside = {"cat.99.jpg": photo_bytes("cat", 99)} if random.integers(2) else {}
        project.photos({f"inner{suffix}": damaged} | beside, str(random.choice(["data/raw/train.zip", "folder"])))
    project.write_params()


def damaged_params(project: Project, random: np.random.Generator) -> None:
    project.photos(kaggle_files(cats=9, dogs=9))
    project.write_params()
    path = project.root / "params.yaml"
    path.write_bytes(mutate(path.read_bytes(), random))


KINDS: dict[str, Callable[[Project, np.random.Generator], None]] = {
    "photos": damaged_photos,
    "archives": damaged_archive,
    "params": damaged_params,
}


def run_prepare(project: Project) -> tuple[int, str]:
    """Run the stage in a fork of this process, which has imported everything: its exit status (if negative, the signal
    that killed it; SIGALRM if it ran too long) and its stderr.
    """
    errors = project.root / "stderr"
    child = os.fork()
    if child == 0:
        signal.alarm(LONGEST_RUN_S)
        for stream, path in ((1, os.devnull), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(project.root)
        sys.argv = ["prepare.py"]
        try:
            run_stage(prepare.main)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            print("" if isinstance(end.code, int) else end.code, file=sys.stderr)
        except BaseException as error:
            status = 99
            print(f"Traceback: {error!r}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), errors.read_text(errors="replace")


def fuzz(kind: str, count: int, seed: int, folder: Path) -> Iterator[tuple[Project, str]]:
    """Run `count` cases; yield the project of each and how it ended: `done`, `refused`, or what is wrong."""
    for case in range(count):
        project = Project(folder / f"{kind}-{seed}-{case}")
        KINDS[kind](project, np.random.default_rng([seed, case]))
        status, errors = run_prepare(project)
        left = list(project.root.rglob("*.partial"))
        lines = errors.strip().splitlines()
        if status == 0 and not left and all(line.startswith("warning: ") for line in lines):
            yield project, "done"
        elif status == 1 and not left and is_refusal(lines):
            yield project, "refused"
        else:
            yield project, f"broken: status {status}, left {left}, {errors[-300:]!r}"


def is_refusal(lines: list[str]) -> bool:
    """One error line, or a line for each mistake in params.yaml."""
    start = "error: " if len(lines) == 1 else "error: params.yaml: "
    return bool(lines) and all(line.startswith(start) for line in lines)


def main() -> None:
    numbers = [int(argument) for argument in sys.argv[1:]] or [10_000, 2_000, 2_000]
    if len(numbers) not in (3, 4):
        sys.exit("error: expected how many photos, archives and params, and perhaps a seed: fuzz.py 10000 2000 2000 1")
    photos, archives, params, seed = (*numbers, 1)[:4]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    broken = 0
    for kind, count in (("photos", -(-photos // PHOTOS_AT_ONCE)), ("archives", archives), ("params", params)):
        start, endings = time.monotonic(), Counter()
        for project, ending in fuzz(kind, count, seed, folder):
            endings[ending.split(":")[0]] += 1
            if ending in ("done", "refused"):
                shutil.rmtree(project.root)
            else:
                broken += 1
                print(f"{project.root}: {ending}")
        print(f"{kind}: {count} runs in {time.monotonic() - start:.0f} s: {dict(endings)}", flush=True)
    if broken:
        sys.exit(f"{broken} runs broke; see {folder}")
    folder.rmdir()


if __name__ == "__main__":
    main()
