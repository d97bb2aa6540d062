"""Describe the code that a script runs: a hash of each of our modules, and the locked versions of packages.

Comments, docstrings, formatting and the version of Python do not change a hash. Modules are read, not imported, so an
import counts wherever it is: also in a function, or after `try`.
"""

import ast
import functools
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.paths import code_text

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path("pipeline/pages/templates")
FOLLOWED = ("pipeline", "stages")  # the folders that the stage track_code depends on

# No result depends on these: params_check only raises errors, and what this module does shows in the files themselves.
UNUSED_MODULES = ("pipeline/core/code.py", "pipeline/core/params_check.py")
UNUSED_PACKAGES = ("psutil", "tqdm")  # find DVC's process, show progress

# Packages whose import name differs from their package name.
PACKAGES = {"PIL": "pillow", "pillow_jxl": "pillow-jxl-plugin", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# What packages compute with, whose versions count too. (Not everything that they require: PyTorch requires Jinja.)
COMPUTE_WITH = {
    "imagehash": ["numpy", "pywavelets", "scipy"],
    "jinja2": ["markupsafe"],
    "matplotlib": ["contourpy", "numpy"],
    "pandas": ["numpy"],
    "pydantic": ["pydantic-core"],
    "scikit-learn": ["numpy", "scipy"],
    "scipy": ["numpy"],
}

# Fields of a syntax tree without meaning: how a name is used, which follows from its position, and the u of u"text".
NO_MEANING = ("ctx", "kind", "type_comment")


def describe(script: Path) -> str:
    """A line for each module and template that `script` uses (path and hash), then one for each package (version).

    Raises UserError if the code is not valid Python, or imports something that cannot be followed.
    """
    script = script.resolve().relative_to(ROOT)
    files, packages = _follow(script)
    lines = [f"{file.as_posix()} {_read(file).hash}" for file in sorted(files)]
    return "".join(f"{line}\n" for line in [*lines, *_locked(packages)])


def require_unchanged(script: Path) -> None:
    """Raise UserError if the code of a stage has changed since `track_code` described it.

    DVC would otherwise record the new code's results as those of the old code.
    """
    text = code_text(script.stem)
    if not text.exists():  # not a stage of this pipeline
        return
    before, now = (set(lines.splitlines()) for lines in (text.read_text(encoding="utf-8"), describe(script)))
    if changed := sorted(before ^ now):
        raise UserError(f"{re.split(' |==', changed[0])[0]} has changed since `dvc repro` began; run `dvc repro` again")


def _follow(script: Path) -> tuple[set[Path], set[str]]:
    """The modules and templates that `script` uses, directly or indirectly, and the names of imported packages."""
    files, packages, unread = {script}, set(), [script]
    while unread:
        file = unread.pop()
        for name in _read(file).uses:
            try:
                found = _find(name, script.parent)
            except LookupError as error:
                raise UserError(f"{file} {error.args[0]}") from None
            packages |= {name.partition(".")[0]} - sys.stdlib_module_names if found is None else set()
            new = set(found or ()) - files - {Path(unused) for unused in UNUSED_MODULES}
            files |= new
            unread += new
    return files, packages


@functools.cache
def _find(name: str, folder: Path) -> list[Path] | None:
    """The file of a template, or the files of a module and its parent packages; None if `name` is not ours.

    Raises LookupError if it is outside of FOLLOWED, or if there is no such template.
    """
    if name.endswith(".jinja"):
        if not (ROOT / TEMPLATES / name).exists():
            raise LookupError(f"uses {name}, which is not in {TEMPLATES}/")
        return [TEMPLATES / name]
    parts = name.split(".")
    for base in (Path(), folder):
        first = base / parts[0]
        if (ROOT / first).is_dir() or (ROOT / first).with_suffix(".py").exists():
            if not any(first.is_relative_to(followed) for followed in FOLLOWED):
                raise LookupError(f"imports {name}; DVC reruns stages only for code in pipeline/ and stages/")
            packages = [base.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
            files = [file for path in packages for file in (path / "__init__.py", path.with_suffix(".py"))]
            return [file for file in files if (ROOT / file).exists()]
    return None


class _Source:
    """The hash of a file's meaning, and the names that it uses: of modules (or objects in them) and templates."""

    def __init__(self, meaning: str, uses: set[str]) -> None:
        self.hash = hashlib.sha256(meaning.encode()).hexdigest()[:16]
        self.uses = uses


@functools.cache
def _read(file: Path) -> _Source:
    content = (ROOT / file).read_text(encoding="utf-8")
    if file.suffix == ".jinja":  # every character of it may be on the page
        tags = re.findall(r"{%.*?%}", content, flags=re.DOTALL)
        return _Source(content, {name for tag in tags for name in re.findall(r"""["']([\w.]+\.jinja)["']""", tag)})
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid Python: {error.msg}") from None
    return _Source(_meaning(tree), set(_uses(tree, file)))


def _meaning(node: Any) -> str:
    """The syntax tree as text, the same in every version of Python, which ast.dump's is not.

    Omits fields that are empty or 0, because new versions of Python add fields; the empty parts that Python 3.12.1 adds
    to f-strings; and statements that are only a string, which are docstrings or have no effect.
    """
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [part for part in node.values if not isinstance(part, ast.Constant) or part.value]
        return f"f[{','.join(map(_meaning, parts))}]"
    if isinstance(node, ast.AST):
        fields = [(name, getattr(node, name, None)) for name in node._fields if name not in NO_MEANING]
        texts = [f"{name}={_meaning(value)}" for name, value in fields if value]
        return f"{type(node).__name__}({' '.join(texts)})"
    if isinstance(node, list):
        return f"[{','.join(_meaning(item) for item in node if not _stands_alone(item))}]"
    return ascii(node)


def _stands_alone(node: Any) -> bool:
    """Whether it is a statement that is nothing but a string."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _uses(tree: ast.AST, file: Path) -> Iterator[str]:
    """The names that a syntax tree imports, except for type checkers only, and the templates that it names."""
    unread = [tree]
    while unread:
        node = unread.pop()
        match node:
            case ast.Name() | ast.expr_context():  # half of all nodes
                continue
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                unread += node.orelse
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                above = file.parent.parts[: len(file.parent.parts) + 1 - node.level] if node.level else ()
                module = ".".join([*above, *([node.module] if node.module else [])])
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module")):
                match node.args:
                    case [ast.Constant(value=str(name))]:
                        yield name
            case ast.Constant(value=str(name)) if name.endswith(".jinja") and re.fullmatch(r"\w[\w.]*", name):
                yield name
        unread += ast.iter_child_nodes(node)


def _locked(names: set[str]) -> Iterator[str]:
    """A line for each imported package, from requirements.txt (if it is optional, from requirements/).

    Raises UserError for a package without one, because a new version of it would go unnoticed.
    """
    packages = {PACKAGES.get(name, name).lower().replace("_", "-") for name in names} - {*UNUSED_PACKAGES}
    packages |= {other for package in packages for other in COMPUTE_WITH.get(package, ())}
    files = (ROOT / "requirements.txt", *sorted((ROOT / "requirements").glob("*.txt")))
    for package in sorted(packages):
        if not (lines := next((_lock(file)[package] for file in files if package in _lock(file)), None)):
            raise UserError(
                f"the code imports {package}, which requirements.txt does not list; add it to requirements.in and run "
                "`make lock`, or map the import to its package in PACKAGES, in pipeline/core/code.py"
            )
        yield ", ".join(lines)  # several if platforms or versions of Python differ


@functools.cache
def _lock(path: Path) -> dict[str, list[str]]:
    """The lines of a lock file, without hashes, by package."""
    lock: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+)==[^\\]+", line):
            lock.setdefault(match[1].lower(), []).append(match[0].rstrip())
    return lock
