"""Edit params.yaml and dvc.yaml as a person would, keeping comments, order, anchors and style."""

import io
from collections.abc import Mapping
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

_yaml = YAML()
_yaml.width = 120
_yaml.indent(mapping=2, sequence=4, offset=2)
_yaml.representer.add_representer(  # ruamel.yaml would leave the value out
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def read_to_edit(path: Path) -> CommentedMap:
    """The YAML in `path`, with its comments. Raises UserError if the file does not exist."""
    if not path.exists():
        raise UserError(f"{path} does not exist in {Path.cwd()}; run this from the project's root")
    return parse(path.read_text(encoding="utf-8"))


def write_edited(contents: Mapping[Path, CommentedMap]) -> None:
    """Write each content to its path: all files, or none on an error."""
    with atomic_write() as write_to:
        for path, content in contents.items():
            _yaml.dump(content, write_to(path))


def parse(text: str) -> CommentedMap:
    """The YAML in `text`, with its comments."""
    return _yaml.load(text)


def as_text(content: CommentedMap) -> str:
    """The YAML text of `content`, with its comments: the inverse of `parse`."""
    text = io.StringIO()
    _yaml.dump(content, text)
    return text.getvalue()
