"""Recipes: named sets of params, each in a file that has only what differs from recipes/default.yaml."""

from pathlib import Path
from typing import Any

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.params import flatten
from pipeline.core.read_params import read_yaml
from pipeline.core.tool_paths import RECIPES

DEFAULT = "default"


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """All recipes, the default first. Raises UserError if there are none."""
    names = sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != DEFAULT, name))
    if names[:1] != [DEFAULT]:
        raise UserError(f"{folder}/{DEFAULT}.yaml does not exist in {Path.cwd()}; run this from the project's root")
    return names


def read_recipe(name: str, folder: Path = RECIPES) -> dict[str, Any]:
    """The values of a whole recipe by dotted key: its own, and the default's for all other keys.

    So no value of an earlier recipe remains. Raises UserError if `name` is unknown, or if it has a key that the default
    lacks, which no other recipe would reset.
    """
    if name not in (names := recipe_names(folder)):
        raise UserError(f"there is no recipe {name}; expected one of {', '.join(names)}")
    default, own = (_read(folder / f"{recipe}.yaml") for recipe in (DEFAULT, name))
    if unknown := own.keys() - default.keys():
        raise UserError(
            *(
                f"{folder}/{name}.yaml: {key} is not in {folder}/{DEFAULT}.yaml; correct the key, or add it there with "
                "its default value"
                for key in sorted(unknown)
            )
        )
    return default | own


def set_values(params: dict, values: dict[str, Any]) -> None:
    """Set values by dotted key in nested params. Raises UserError for a key that they do not have."""
    known = dict(flatten(params))
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{RECIPES}/{DEFAULT}.yaml: unknown key {key}; expected one that is in params.yaml")
        *sections, last = key.split(".")
        section = params
        for name in sections:
            section = section[name]
        section[last] = value


def apply_recipe(name: str, params: Params) -> dict[str, Any]:
    """The content of params.yaml with a recipe applied to `params`; its values are not checked yet."""
    content = params.model_dump()
    set_values(content, read_recipe(name))
    return content


def changed_values(before: Params, after: Params) -> dict[str, tuple[Any, Any]]:
    """The values that differ, before and after, by dotted key."""
    old, new = (dict(flatten(params.model_dump())) for params in (before, after))
    return {key: (old[key], value) for key, value in new.items() if value != old[key]}


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} has no params; expected keys of params.yaml with their values, such as lr: 0.001")
    return dict(flatten(content))
