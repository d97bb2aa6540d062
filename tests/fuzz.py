"""Feed `prepare` with damaged photos, archives and params: it must end well or in one line, never otherwise.

Usage: python tests/fuzz.py [PHOTOS ARCHIVES PARAMS [SEED]], how many of each; 10000 2000 2000 1 if left out
Each case is a run of the stage in a process of its own. Prints what each kind of run ended in; what broke the stage
stays in a folder that is named, and the exit status is 1.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("stages", "demo")]
import prepare  # noqa: E402
from catsdogs.process import run_stage  # noqa: E402

from conftest import CLASSES, Project, draw_photo, encode, kaggle_files, write_zip  # noqa: E402

LONGEST_RUN_S = 60
PHOTOS_AT_ONCE = 500


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """A few damages at random places: flipped bits, bytes set to extremes, cut out, doubled or cut off."""
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
    """An archive of PHOTOS_AT_ONCE damaged photos in several formats, and a few good ones; a split that wants all of
    them, or a fifth."""
    files = kaggle_files(cats=10, dogs=10)
    for number in range(PHOTOS_AT_ONCE):
        label = CLASSES[number % 2]
        image = draw_photo(label, number % 50)
        if number % 3 == 0:
            content = encode(image, str(random.choice(["PNG", "WEBP", "GIF", "BMP", "TIFF"])))
        else:
            mode = str(random.choice(["RGB", "L", "CMYK"]))
            content = encode(image.convert(mode), "JPEG", progressive=bool(random.integers(2)))
        files[f"train/{label}.{1000 + number}.jpg"] = mutate(content, random)
    project.photos(files)
    project.split(train=int(random.choice([PHOTOS_AT_ONCE, PHOTOS_AT_ONCE // 5])), validation=4, test=4)
    project.params["prepare"]["resize"] = str(random.choice(["squeeze", "center_crop"]))
    project.write_params()


def damaged_archive(project: Project, random: np.random.Generator) -> None:
    path = project.root / "data/raw/train.zip"
    write_zip(path, kaggle_files(cats=9, dogs=9), compression=int(random.choice([0, 8, 12, 14])))
    path.write_bytes(mutate(path.read_bytes(), random))
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
    """Run the stage in a fork of this process, which has imported all: its exit status (negative: the signal that
    killed it, SIGALRM for too long a run) and what it said on stderr."""
    errors = project.root / "stderr"
    child = os.fork()
    if child == 0:
        signal.alarm(LONGEST_RUN_S)
        for stream, path in ((1, os.devnull), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(project.root)
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
    """Run `count` cases; of each its project and what it ended in: `done`, `one line`, or what is wrong."""
    for case in range(count):
        project = Project(folder / f"{kind}-{seed}-{case}")
        KINDS[kind](project, np.random.default_rng([seed, case]))
        status, errors = run_prepare(project)
        left = list(project.root.rglob("*.partial"))
        lines = errors.strip().splitlines()
        if status == 0 and not left and all(line.startswith("warning: ") for line in lines):
            yield project, "done"
        elif status == 1 and not left and len(lines) == 1 and lines[0].startswith("error: "):
            yield project, "one line"
        else:
            yield project, f"broken: status {status}, left {left}, {errors[-300:]!r}"


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
            if ending in ("done", "one line"):
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
