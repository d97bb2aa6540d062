"""What track_code writes: a text per script, with a hash of each module that the script uses, and its packages."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pipeline.core.code import describe
from tests.support import forked
from tests.support.projects import REPOSITORY, error_line

import pytest

# Every kind of syntax that versions of Python have parsed, or described, in different ways.
SYNTAX = """
import os as system, re
from typing import *
def f(a, /, b: int = 1, *c, d, e=..., **g) -> None:
    global h
    x = [1, 2.5, 1e400, 3j, True, None, b"\\xff", "é \\U0001f600 \\x00", u"u", -1, not a]
    y = f"{a}{b!r:>{d}}{a:{b}.{e}} {{}} {x = }" "and" f'{g:%H:%M}{a:}'
    return {**g, "a": {a for a in x if a}, (1,): lambda: (yield)}, x[1:2, ...], a if b else c
async def g():
    async with f() as a, f(): await a
    async for b in a: pass
    else: del b
class C(dict, metaclass=type):
    x: int
    @property
    def y(self): return self.x @ 1 // 2 ** 3 << 4 | 5 & ~6 ^ 7
try:
    match (n := [1]):
        case [1, *_] | {"a": 1, **rest} if n: pass
        case C(x=1) as c: raise OSError from None
        case None | _: assert n, "no"
except* (OSError, ValueError) as error: pass
finally:
    while 1 < 2 <= 3 != 4 is not None not in (): break
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with track_code, what it imports, and the locked packages; its other scripts are the tests' own."""
    folder = tmp_path / "code"
    for part in ("pipeline/core", "requirements"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pipeline/__init__.py", "stages/track_code.py", "requirements.txt"):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / file, folder / file)
    add_sources(folder)
    return folder


def add_sources(folder: Path) -> None:
    """Write params.yaml, and empty files where it says that the photos and the labels are."""
    shutil.copy(REPOSITORY / "params.yaml", folder)
    (folder / "data/raw").mkdir(parents=True)
    for file in ("data/raw/train.zip", "data/labels.csv"):
        (folder / file).touch()


def track(folder: Path, sources: Mapping[str, str]) -> subprocess.CompletedProcess:
    """Write modules and run track_code."""
    for name, source in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return forked.run(["stages/track_code.py"], folder, {})


def uses(folder: Path, sources: Mapping[str, str]) -> set[str]:
    """What the text of stages/a.py lists besides itself, without hashes and versions."""
    done = track(folder, sources)
    assert done.returncode == 0, done.stderr
    lines = (folder / "data/code/a.txt").read_text().splitlines()
    return {line.partition(" ")[0].partition("==")[0] for line in lines} - {"stages/a.py"}


def hash_of(folder: Path, source: str) -> str:
    track(folder, {"stages/a.py": source})
    return (folder / "data/code/a.txt").read_text().split()[1]


def test_the_texts_are_the_same_in_two_clones_at_different_paths(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "a longer name/two"):
        for part in ("stages", "pipeline", "requirements"):
            shutil.copytree(REPOSITORY / part, tmp_path / name / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "requirements.txt", tmp_path / name)
        add_sources(tmp_path / name)
        assert track(tmp_path / name, {}).returncode == 0
        texts.append({path.name: path.read_text() for path in (tmp_path / name / "data/code").iterdir()})
    assert texts[0] == texts[1]
    scripts = {path.stem for path in (REPOSITORY / "stages").glob("*.py")} - {"track_code"}
    assert {*texts[0]} == {f"{name}.txt" for name in scripts}
    assert texts[0]["train.txt"] == describe(REPOSITORY / "stages/train.py")


def test_the_hash_of_each_kind_of_syntax_is_the_same_in_every_version_of_python(code: Path) -> None:
    assert hash_of(code, SYNTAX) == "2e02edb126138d1d"


def test_imports_are_found_wherever_they_stand(code: Path) -> None:
    modules = {
        "pipeline/b/__init__.py": "from pipeline.b import c",  # a package's own imports count, too
        "pipeline/b/c.py": "from . import d\nfrom .d import e",
        "pipeline/b/d.py": "import numpy.linalg",
        "pipeline/f.py": "def f():\n    try:\n        import yaml\n    except ImportError:\n        pass",
        "pipeline/g.py": "",
        "pipeline/h.py": "",
        "pipeline/unused.py": "",
    }
    script = (
        "import importlib\nimport os.path\nfrom typing import TYPE_CHECKING\nimport pipeline.b\n"
        "def main():\n    from pipeline import f\n    importlib.import_module('pipeline.g')\n"
        "if TYPE_CHECKING:\n    import pipeline.unused\nelse:\n    from pipeline.h import anything\n"
    )
    expected = {"__init__", "b/__init__", "b/c", "b/d", "f", "g", "h"}
    assert uses(code, {**modules, "stages/a.py": script}) == {f"pipeline/{name}.py" for name in expected} | {
        "numpy",
        "pyyaml",
    }


def test_packages_bring_what_they_compute_with_but_not_all_that_they_require(code: Path) -> None:
    assert uses(code, {"stages/a.py": "import torch"}) == {"torch"}
    assert uses(code, {"stages/a.py": "import sklearn.metrics, psutil, tqdm"}) == {"scikit-learn", "numpy", "scipy"}


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = True", "x = 1"),
        ("x = 'a'", "x = b'a'"),
        ("x = None", "x = ..."),
        ("f(a, b)", "f(a, *b)"),
        ("x = f'{a}'", "x = f'{a!s}'"),
        ("if a:\n    b\n    c", "if a:\n    b\nc"),
        ("x = 'a'", "x = 'A'"),
        ("def f(a=1): return a", "def f(a=2): return a"),
        ("x: int = 1", "x: str = 1"),
        ("a < b", "a <= b"),
        ("x = a.b", "x = a.c"),
    ],
)
def test_code_that_means_something_else_has_another_hash(code: Path, source: str, other: str) -> None:
    assert hash_of(code, source) != hash_of(code, other)


def test_mistakes_are_one_line(code: Path) -> None:
    def refusal(script: str) -> str:
        return error_line(track(code, {"helpers.py": "", "stages/a.py": script}))

    assert refusal("x = 1\ndef f(:") == "stages/a.py, line 2: not valid Python: invalid syntax"
    assert refusal("import unheard_of") == (
        "the code imports unheard-of, which requirements.txt does not list; add it to requirements.in and run "
        "`make lock`, or map the import to its package in PACKAGES, in pipeline/core/code.py"
    )
    assert refusal("import helpers") == (
        "stages/a.py imports helpers; DVC reruns stages only for code in pipeline/ and stages/"
    )
    assert refusal("page = 'unheard_of.html.jinja'") == (
        "stages/a.py uses unheard_of.html.jinja, which is not in pipeline/pages/templates/"
    )


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "data/raw/train.zip",
            "data/raw/train.zip: no such file or folder; put the photos there, or set prepare.source",
        ),
        ("data/labels.csv", "data/labels.csv does not exist; create it, or set prepare.labels to another table"),
    ],
)
def test_track_code_names_missing_photos_and_labels_unless_an_earlier_run_read_them(
    code: Path, file: str, expected: str
) -> None:
    (code / file).unlink()
    assert error_line(track(code, {})) == expected
    (code / "dvc.lock").write_text(f"stages:\n  prepare:\n    deps:\n    - path: {file}\n      md5: 0\n")
    assert track(code, {}).returncode == 0
