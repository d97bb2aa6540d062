"""Apply a recipe, a named set of params, to params.yaml: first recipes/default.yaml, then the recipe's own file.

This way, no value of an earlier recipe remains. A network's own values are replaced by those that the recipe's own
file has for it, or removed. Params that are in neither file, such as classes, photos, the networks and seeds, stay as
they are.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.params import as_written
from pipeline.core.params_check import check_all
from pipeline.core.paths import PARAMS
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.tool_paths import RECIPES
from pipeline.editing.recipes import (
    DEFAULT,
    apply_recipe,
    changed_values,
    read_own_params,
    read_recipe,
    recipe_names,
    set_own_params,
    set_values,
)
from pipeline.editing.yaml_files import read_to_edit, write_edited

WIDTH = 120  # of the output, in columns


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("recipe", nargs="?", metavar="RECIPE", help="its name, such as best")
    what.add_argument("--list", action="store_true", help="print all recipes and when to use them")
    parser.add_argument("--diff", action="store_true", help="only print what would change")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    if arguments.list:
        print("\n".join(describe_all()))
        return
    changes = find_changes(arguments.recipe)
    if not changes:
        print(f"{PARAMS} already has recipe {arguments.recipe}")
        return
    if not arguments.diff:
        content = read_to_edit(PARAMS)
        set_values(content, read_recipe(arguments.recipe))
        set_own_params(content["networks"], read_own_params(arguments.recipe))
        write_edited({PARAMS: content})
    files = (f"{RECIPES}/{name}.yaml" for name in dict.fromkeys((DEFAULT, arguments.recipe)))
    print(f"{', then '.join(files)} {'would change' if arguments.diff else 'changed'} {PARAMS}:")
    for key, values in changes.items():
        print(f"  {key}: {' -> '.join(map(as_written, values))}")
    if not arguments.diff:
        print(f"run `dvc repro`, or `dvc exp run --name {arguments.recipe}` to keep the result as an experiment")


def describe_all() -> Iterator[str]:
    """A paragraph for each recipe: its name, and when to use it, which is the comment at the top of its file."""
    names = recipe_names()
    width = max(map(len, names)) + 2
    for name in names:
        lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
        yield textwrap.fill(f"{name:<{width}}{comment}", WIDTH, subsequent_indent=" " * width, break_on_hyphens=False)


def find_changes(name: str) -> dict[str, tuple[Any, Any]]:
    """What recipe `name` changes in params.yaml: the value before and after, by dotted key.

    Raises UserError if params.yaml is wrong, or would be.
    """
    before = read_params(Params)
    after = apply_recipe(name, before)
    try:
        check_all(after)
    except UserError as error:
        reasons = (line.removeprefix(f"{PARAMS}: ") for line in error.args)
        raise UserError(*(f"recipe {name} cannot be applied: {reason}" for reason in reasons)) from None
    return changed_values(before, Params.model_validate(after))


if __name__ == "__main__":
    run_stage(main)
