"""Edit params.yaml and dvc.yaml as a person would, keeping comments, order, anchors and style."""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

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


def update(parent: CommentedMap, key: str, remove: Iterable[str], add: Mapping) -> None:
    """Remove and add values of the mapping `parent[key]`, which is on one line if it then has a single value."""
    mapping = parent[key]
    if sum(value is mapping for value in parent.values()) > 1:  # an alias, whose other uses must not change
        mapping = parent[key] = CommentedMap(mapping)
    with keep_what_follows(parent, key):
        for name in remove:
            del mapping[name]
        mapping.update(parse(as_text(CommentedMap(add))) if add else {})
        (mapping.fa.set_block_style if len(mapping) > 1 or mapping.ca.items else mapping.fa.set_flow_style)()


@contextmanager
def keep_what_follows(parent: CommentedMap, key: str) -> Iterator[None]:
    """Keep the comments and blank lines after the mapping `parent[key]` there while its last values change.

    ruamel.yaml has them in the token of the comment on the line of the last value; that comment stays with its value.
    """
    following = ""
    if token := _last_token(parent, key):
        on_line, end, following = token.value.partition("\n")
        token.value = on_line + end
    yield
    if following:
        token = _last_token(parent, key) or CommentToken("\n", CommentMark(0))
        token.value += following
        holder, last = _last_value(parent, key)
        holder.ca.items[last] = [None, None, token, None]


def _last_token(parent: CommentedMap, key: str) -> CommentToken | None:
    """The token after the last value within `parent[key]`."""
    holder, last = _last_value(parent, key)
    return holder.ca.items[last][2] if last in holder.ca.items else None


def _last_value(holder: CommentedMap, key: str) -> tuple[CommentedMap, str]:
    """The mapping and key of the last value within `holder[key]` that has a line of its own."""
    while isinstance(value := holder[key], CommentedMap) and value and not value.fa.flow_style():
        holder, key = value, next(reversed(value))
    return holder, key


def parse(text: str) -> CommentedMap:
    """The YAML in `text`, with its comments."""
    return _yaml.load(text)


def as_text(content: CommentedMap) -> str:
    """The YAML text of `content`, with its comments: the inverse of `parse`."""
    text = io.StringIO()
    _yaml.dump(content, text)
    return text.getvalue()
