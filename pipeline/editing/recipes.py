"""Recipes: named sets of params, each in a file that has only what differs from recipes/default.yaml.

A recipe can also have values of `lr` and `train` for single networks, under `networks` as in params.yaml. Other recipes
do not inherit those of the default.
"""

from pathlib import Path
from typing import Any

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.params import flatten
from pipeline.core.read_params import read_yaml
from pipeline.core.tool_paths import RECIPES
from pipeline.editing.yaml_files import update

from ruamel.yaml.comments import CommentedMap

DEFAULT = "default"
OWN = ("lr", "train")  # what a network can have of its own
NOT_SET = "not set"


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """All recipes, the default first. Raises UserError if there are none."""
    names = sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != DEFAULT, name))
    if names[:1] != [DEFAULT]:
        raise UserError(f"{folder}/{DEFAULT}.yaml does not exist in {Path.cwd()}; run this from the project's root")
    return names


def read_recipe(name: str, folder: Path = RECIPES) -> dict[str, Any]:
    """The values of a whole recipe for all networks by dotted key: its own, and the default's for all other keys.

    So no value of an earlier recipe remains. Raises UserError if `name` is unknown, or if it has a key that the default
    lacks, which no other recipe would reset.
    """
    if name not in (names := recipe_names(folder)):
        raise UserError(f"there is no recipe {name}; expected one of {', '.join(names)}")
    default, own = (_read(folder / f"{recipe}.yaml")[0] for recipe in (DEFAULT, name))
    if unknown := own.keys() - default.keys():
        raise UserError(
            *(
                f"{folder}/{name}.yaml: {key} is not in {folder}/{DEFAULT}.yaml; correct the key, or add it there with "
                "its default value"
                for key in sorted(unknown)
            )
        )
    return default | own


def read_own_params(name: str, folder: Path = RECIPES) -> dict[str, dict]:
    """The values of `lr` and `train` that recipe `name` has for single networks, by network."""
    return _read(folder / f"{name}.yaml")[1]


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


def set_own_params(networks: CommentedMap, own: dict[str, dict]) -> None:
    """Make each of `networks`, the section of params.yaml, have its values in `own`, or none if it has none there."""
    for name, network in networks.items():
        before, after = {key: network[key] for key in OWN if key in network}, own.get(name, {})
        if before != after:
            update(networks, name, before, after)


def apply_recipe(name: str, params: Params) -> dict[str, Any]:
    """The content of params.yaml with a recipe applied to `params`; its values are not checked yet."""
    content = params.model_dump()
    set_values(content, read_recipe(name))
    own = read_own_params(name)
    content["networks"] = {
        network: {"weights": values["weights"], **own.get(network, {})}
        for network, values in content["networks"].items()
    }
    return content


def changed_values(before: Params, after: Params) -> dict[str, tuple[Any, Any]]:
    """Each value that differs, by dotted key: a pair (before, after), with NOT_SET if a network has none of its own."""
    old, new = (dict(flatten(params.model_dump())) for params in (before, after))
    values = {key: (old.get(key, NOT_SET), new.get(key, NOT_SET)) for key in old | new}
    return {key: (before, after) for key, (before, after) in values.items() if before != after}


def recipe_of(params: Params) -> str | None:
    """The recipe that `params` have, if any."""
    recipes = ((name, Params.model_validate(apply_recipe(name, params))) for name in recipe_names())
    return next((name for name, recipe in recipes if recipe == params), None)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict]]:
    """The values in a recipe's file for all networks, by dotted key, and those for single networks, by network."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} has no params; expected keys of params.yaml with their values, such as lr: 0.001")
    networks = content.pop("networks", {})
    for name, own in networks.items() if isinstance(networks, dict) else [("NETWORK", networks)]:
        if not (isinstance(own, dict) and own.keys() <= {*OWN}):
            raise UserError(
                f"{path}: networks.{name} is {own!r}; expected values of {' and '.join(OWN)} for this network"
            )
    return dict(flatten(content)), networks
