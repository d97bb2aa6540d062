"""Check all of params.yaml. This module only raises errors, so no result depends on it."""

import itertools
from typing import Any, TypeVar

from pipeline.core.all_params import Params
from pipeline.core.class_names import normal_form
from pipeline.core.errors import UserError
from pipeline.core.params import ROUNDING, Section
from pipeline.core.sections.prepare import Prepare
from pipeline.core.sections.train import Train, own_params

from pydantic import ValidationError

Part = TypeVar("Part", bound=Section)

COMMON = {"launcher", "seed"}  # of `train`: no network has its own
NEW_NAMES = {  # keys of version 1.1
    "train.body_lr_factor": "train.backbone_lr_factor",
    "reject.share": "reject.false_rejection_rate",
}
NEW_VALUES = {  # of version 1.1, by key and value
    ("prepare.resize", "squeeze"): "stretch",
    ("train.head_width", "0"): "null",
    ("train.lr_step_size", "0"): "null",
    ("train.image_size", "0"): "null",
    ("reject.false_rejection_rate", "0"): "null",
    ("reject.false_rejection_rate", "0.0"): "null",
}


def check_all(content: Any) -> None:
    """Raise UserError, with a line per mistake, if the content of params.yaml is wrong."""
    params = _validate(Params, content)
    _check_split(params.prepare)
    _check_train(params.train, params.prepare)
    for name, network in params.networks.items():
        if not network.train:
            continue
        if common := sorted(COMMON & network.train.keys()):
            raise UserError(
                *(
                    f"params.yaml: networks.{name}.train.{key} cannot be set for one network; remove it, because all "
                    f"share train.{key}"
                    for key in common
                )
            )
        _validate(Train, params.train.model_dump() | network.train, "networks", name, "train")
        _check_train(own_params(name, network, params.lr, params.train)["train"], params.prepare)


def _validate(section: type[Part], content: Any, *above: str) -> Part:
    """The section with this content, under the keys `above`. Raises UserError with a line per mistake."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        mistakes: list[Any] = [{**mistake, "loc": (*above, *mistake["loc"])} for mistake in error.errors()]
        renamed = {NEW_NAMES.get(_key(mistake)) for mistake in mistakes}  # the new key is missing, of course
        raise UserError(*(_describe(mistake) for mistake in mistakes if _key(mistake) not in renamed)) from None


def _check_split(prepare: Prepare) -> None:
    """Raise UserError if two values of `prepare.split` contradict each other."""
    names = [(name, value) for name, value in prepare.split if isinstance(value, str)]
    for (one, value), (other, its_value) in itertools.combinations(names, 2):
        if normal_form(value) == normal_form(its_value):
            raise UserError(
                f"params.yaml: prepare.split.{one} and prepare.split.{other} are both {value!r}; expected different "
                "photos"
            )
    shares = [value for _, value in prepare.split if isinstance(value, float)]
    if sum(shares) > 1 + ROUNDING:
        raise UserError(
            f"params.yaml: the shares in prepare.split are {' + '.join(map(str, shares))}; expected at most 1 in all"
        )


def _check_train(train: Train, prepare: Prepare) -> None:
    """Raise UserError if a value of `train`, for all networks or for one, contradicts another one."""
    if isinstance(prepare.split.train, int) and train.batch_size > prepare.split.train:
        raise UserError(
            f"params.yaml: {train.key('batch_size')} is {train.batch_size}; expected at most prepare.split.train "
            f"({prepare.split.train})"
        )
    if train.head_init == "fitted" and train.head_width:
        raise UserError(
            f"params.yaml: {train.key('head_width')} is {train.head_width}; expected null, a linear head, because "
            f"{train.key('head_init')} is fitted; or set {train.key('head_init')} to random"
        )
    if train.image_size and train.image_size > prepare.image_size:
        raise UserError(
            f"params.yaml: {train.key('image_size')} is {train.image_size}; expected at most prepare.image_size "
            f"({prepare.image_size}), or null to use that size"
        )


def _describe(error: Any) -> str:
    """Format a pydantic error as one line: the key, its value and what was expected."""
    key = _key(error)
    if error["type"] == "missing":
        return f"params.yaml: the key {key} is missing"
    if error["type"] == "extra_forbidden" and key in NEW_NAMES:
        return f"params.yaml: {key} is now called {NEW_NAMES[key]}; rename it"
    match error["loc"]:
        case ("networks", network, name) if (
            error["type"] == "extra_forbidden" and name in Train.model_fields.keys() - COMMON
        ):
            return f"params.yaml: unknown key {key}; expected networks.{network}.train.{name}"
    if error["type"] == "extra_forbidden":
        return f"params.yaml: unknown key {key}; remove it or correct its name"
    value = "empty" if error["input"] is None else repr(error["input"])
    return f"params.yaml: {key or 'the file'} is {value}; {_expected(error)}"


def _key(error: Any) -> str:
    """The dotted key that a pydantic error is about."""
    return ".".join(map(str, error["loc"]))


def _expected(error: Any) -> str:
    """What was expected instead of the value of a pydantic error."""
    if new := NEW_VALUES.get((_key(error), str(error["input"]))):
        return f"this is now called {new}"
    if error["type"] == "model_type":
        section = next(
            kind
            for kind in Section.__subclasses__()
            if kind.__name__ == error["ctx"]["class_name"] and kind.__module__.startswith("pipeline.")
        )
        return f"expected the keys {', '.join(section.model_fields)}"
    if error["type"] == "dict_type" and _key(error) != "networks":
        return "expected values of train for this network, such as {optimizer: adam}"
    if error["type"] == "dict_type":
        return "expected names of networks, each with its weights, such as resnet18: {weights: IMAGENET1K_V1}"
    text = error["msg"].removeprefix("Value error, ")
    return f"{text[0].lower()}{text[1:]}"
