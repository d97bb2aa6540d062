"""Read search.yaml: which params a search varies, and over which values."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.params import Number, Section, as_written, flatten
from pipeline.core.params_check import check_all
from pipeline.core.paths import PARAMS
from pipeline.core.read_params import read_yaml
from pipeline.core.sections.train import Train
from pipeline.core.tool_paths import SEARCH_SPACE
from pipeline.editing.recipes import set_values

from pydantic import ValidationError

NOT_SEARCHED = ("launcher", "seed")  # no result depends on the launcher; the best seed is the luckiest one
KEYS = ("lr", *(f"train.{key}" for key in Train.model_fields if key not in NOT_SEARCHED))
# Params that have an effect only with some values of another one.
USED_IF: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "train.backbone_lr_factor": ("train.layers", lambda layers: layers != "head"),
    "train.batchnorm_statistics": ("train.layers", lambda layers: layers != "head"),
    "train.dropout": ("train.head_width", lambda width: width is not None),
    "train.momentum": ("train.optimizer", lambda optimizer: optimizer == "sgd"),
    "train.lr_step_size": ("train.lr_schedule", lambda schedule: schedule == "step"),
    "train.lr_gamma": ("train.lr_step_size", lambda size: size is not None),
    "train.crop_scale": ("train.augment", lambda augment: augment == "crop_and_flip"),
}
OWN = "if every network has its own"
EXAMPLE = "{low: 0.00001, high: 0.001, log: true}, or a list of two or more different values"


class Range(Section):
    """From low to high, both included; in whole numbers if the param is one."""

    low: Number
    high: Number
    log: bool = False


Space = dict[str, Range | list[Any]]  # by dotted key


def read_space(params: Params) -> Space:
    """The content of search.yaml. Raises UserError, which names the key, if a trial could not run with it.

    Every end of a range and every value of a list must be allowed in params.yaml, and the current one be among them,
    because the search starts there. At least one of the params must have an effect.
    """
    content = read_yaml(SEARCH_SPACE)
    if not content or not isinstance(content, dict):
        raise UserError(f"{SEARCH_SPACE} has no params; expected for example lr: {EXAMPLE}")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{SEARCH_SPACE}: {key} cannot be searched; expected one of {', '.join(KEYS)}")
    current = current_values(params, content)
    space = {key: _read_values(key, values, current[key]) for key, values in content.items()}
    for key, values in space.items():
        for value in values if isinstance(values, list) else (values.low, values.high):
            _check(params, key, value)
    unused = find_unused(space, params)
    if len(unused) == len(space):
        raise UserError(f"{SEARCH_SPACE}: {'; '.join(unused)}; expected params that have an effect")
    return space


def find_unused(space: Space, params: Params) -> list[str]:
    """The params that have no effect on any network in any trial, each with the reason."""
    owns = own_values(params)
    unused = []
    for key in space:
        if not any(other in space for other in _needed(key)):
            reasons = [why_unused(key, current_values(params, KEYS) | own, own) for own in owns]
            if all(reasons):
                unused.append(f"{key} has no effect {next((reason for reason in reasons if reason != OWN), OWN)}")
    return unused


def find_fixed(space: Space, params: Params) -> list[str]:
    """The params that do not vary for some networks, which have their own values, each with these networks."""
    fixed = {
        key: [name for name, own in zip(params.networks, own_values(params), strict=True) if key in own]
        for key in space
    }
    return [
        f"{key} does not vary for {', '.join(names)}, with a value of its own" for key, names in fixed.items() if names
    ]


def why_unused(key: str, values: dict[str, Any], own: dict[str, Any]) -> str:
    """When a param has no effect on a network, as here: `with train.layers head`, for example; empty if it has one.

    `values` are all of the network's, and `own` those that only it has.
    """
    if key in own:
        return OWN
    if key not in USED_IF:
        return ""
    other, allows = USED_IF[key]
    return why_unused(other, values, {}) or (
        "" if allows(values[other]) else f"with {other} {as_written(values[other])}"
    )


def in_order(space: Space) -> list[str]:
    """The params, each after those that decide whether it has an effect."""
    return sorted(space, key=lambda key: len([*_needed(key)]))


def _needed(key: str) -> Iterator[str]:
    """The params that decide whether this one has an effect."""
    while key in USED_IF:
        key = USED_IF[key][0]
        yield key


def own_values(params: Params) -> list[dict[str, Any]]:
    """What each network has of its own, by the keys of the values for all networks."""
    return [dict(flatten(network.model_dump(exclude={"weights"}))) for network in params.networks.values()]


def current_values(params: Params, keys: Any) -> dict[str, Any]:
    """The values of `keys` in params.yaml."""
    values = dict(flatten(params.model_dump()))
    return {key: values[key] for key in keys}


def _number_or_text(value: Any) -> Any:
    """The number that YAML reads as text, such as 1e-3; else the value itself."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _read_values(key: str, values: Any, current: Any) -> Range | list[Any]:
    name = f"{SEARCH_SPACE}: {key}"
    if isinstance(values, list):
        values = [_number_or_text(value) for value in values]
        if len(values) < 2 or any(value in values[:index] for index, value in enumerate(values)):
            raise UserError(f"{name} is {values}; expected {EXAMPLE}")
        if current not in values:
            raise UserError(f"{name} lacks {as_written(current)}, the value in {PARAMS}, where the search starts")
        return values
    try:
        found = Range.model_validate(values)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{name} is {values}{f' ({where} is wrong)' if where else ''}; expected {EXAMPLE}") from None
    if isinstance(current, bool | str) or current is None:
        raise UserError(f"{name} is a range, but {as_written(current)} in {PARAMS}; expected a list of values")
    if found.low >= found.high or (found.log and found.low <= 0):
        raise UserError(f"{name} is {values}; expected low below high{', and above 0 for log' if found.log else ''}")
    if isinstance(current, int):
        if not (found.low.is_integer() and found.high.is_integer()):
            raise UserError(f"{name} is {values}; expected whole numbers")
        found = found.model_copy(update={"low": int(found.low), "high": int(found.high)})
    if not found.low <= current <= found.high:
        raise UserError(
            f"{name} is from {found.low} to {found.high}, without {current}, the value in {PARAMS}, where the search "
            "starts"
        )
    return found


def _check(params: Params, key: str, value: Any) -> None:
    """Raise UserError unless params.yaml would be correct with this value."""
    content = params.model_dump()
    set_values(content, {key: value})
    try:
        check_all(content)
    except UserError as error:
        raise UserError(*(line.replace(f"{PARAMS}:", f"{SEARCH_SPACE}:", 1) for line in error.args)) from None
