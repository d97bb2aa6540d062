"""Read params.yaml, after all of it has been checked, and other YAML by the same rules."""

from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import UserError
from pipeline.core.params import Section
from pipeline.core.params_check import check_all
from pipeline.core.parse_yaml import SafeLoader
from pipeline.core.paths import PARAMS

import yaml

Part = TypeVar("Part", bound=Section)


class _Loader(SafeLoader):
    """Refuses what PyYAML accepts silently: duplicate keys, and values that it changes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise UserError(
                    f"{node.start_mark.name}: {name} is in lines {lines[name]} and {line}; delete one of the two"
                )
            lines[name] = line
        return super().construct_mapping(node, deep)

    def construct_unchanged(self, node: yaml.ScalarNode) -> int | float:
        """Construct a number. Refuses dates, and 007, 010 and 12:30, which YAML reads as 7, 8 and 750."""
        text, value = node.value, SafeLoader.yaml_constructors[node.tag](self, node)
        is_date = isinstance(value, date)
        if not is_date and (str(value) == text or (isinstance(value, float) and ":" not in text)):
            return value
        read_as = "a date; put it in quotes" if is_date else f"{value}; put it in quotes, or write {value}"
        line = f"{node.start_mark.name}, line {node.start_mark.line + 1}"
        raise UserError(f"{line}: YAML reads {text} as {read_as}")


for _tag in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_unchanged)


def read_params(part: type[Part], path: Path = PARAMS) -> Part:
    """Check every key of `path`, and read those that `part` has.

    A stage reads only its own part, so that changes to other sections do not rerun it. Raises UserError with one line
    per mistake, which names the key (or the line, for invalid YAML), its value and what was expected.
    """
    content = read_yaml(path)
    check_all(content)
    return part.model_validate({key: content[key] for key in part.model_fields})


def read_yaml(path: Path) -> Any:
    """The content of `path`. Raises UserError if the file is missing, is not valid YAML, or YAML would misread it."""
    try:
        with path.open(encoding="utf-8") as file:  # a file, so that YAML knows its name
            return yaml.load(file, _Loader)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist in {Path.cwd()}; run this from the project's root") from None
    except Exception as error:  # not only YAML's own errors: also invalid UTF-8 and impossible dates
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
