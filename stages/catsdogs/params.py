"""params.yaml, read and checked before any work starts."""

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from catsdogs.errors import UserError

import yaml

WEIGHTS_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Range:
    """The values that a number may take: from `minimum` (itself excluded if `above`) to `maximum`, included."""

    minimum: float
    maximum: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.minimum if self.above else value >= self.minimum) and value <= self.maximum

    def __str__(self) -> str:
        text = f"above {self.minimum:g}" if self.above else f"{self.minimum:g} or more"
        return text if math.isinf(self.maximum) else f"{text} and at most {self.maximum:g}"


Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]


@dataclass(frozen=True)
class Split:
    train: Count
    validation: Count
    test: Count


@dataclass(frozen=True)
class Prepare:
    image_size: Annotated[int, Range(32, 1024)]
    resize: Literal["squeeze", "center_crop"]
    split: Split
    seed: Seed


@dataclass(frozen=True)
class Network:
    weights: str


@dataclass(frozen=True)
class Train:
    layers: Literal["head", "batchnorm", "last_half", "all"]
    body_lr_factor: Annotated[float, Range(0, 1, above=True)]
    head_width: Annotated[int, Range(0)]
    dropout: Annotated[float, Range(0, 0.99)]
    optimizer: Literal["adam", "sgd"]
    momentum: Annotated[float, Range(0, 0.9999)]
    lr_schedule: Literal["step", "one_cycle"]
    lr_step_size: Annotated[int, Range(0)]
    lr_gamma: Annotated[float, Range(0, 1, above=True)]
    label_smoothing: Annotated[float, Range(0, 0.9)]
    augment: Literal["none", "flip", "crop_and_flip"]
    crop_scale: Annotated[float, Range(0, 1, above=True)]
    image_size: Annotated[int, Range(0, 1024)]
    batch_size: Annotated[int, Range(2)]
    epochs: Count
    seed: Seed


@dataclass(frozen=True)
class Ensemble:
    method: Literal["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"]


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml; what each key means stands there, beside it."""

    source: str
    lr: Annotated[float, Range(0, above=True)]
    precision: Literal["auto", "float32", "bfloat16"]
    test_time_flip: bool
    launcher: str
    prepare: Prepare
    networks: dict[str, Network]
    train: Train
    ensemble: Ensemble


def read_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check every key of `path`.

    Raises UserError, naming the key (or the line, for broken YAML), what is there and what was expected.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path} in {Path.cwd()}; run the stages from the project's root") from None
    except Exception as error:  # beside YAML's own errors those of bytes that are no text, dates that do not exist ...
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    params = _read_value(Params, content, key="")
    for name, size in vars(params.prepare.split).items():
        if size % 2:
            raise _wrong(f"prepare.split.{name}", size, "an even number, half cats and half dogs")
    if params.train.batch_size > params.prepare.split.train:
        raise _wrong(
            "train.batch_size", params.train.batch_size, f"at most prepare.split.train, {params.prepare.split.train}"
        )
    if params.train.image_size > params.prepare.image_size:
        raise _wrong(
            "train.image_size",
            params.train.image_size,
            f"at most prepare.image_size, {params.prepare.image_size}, or 0 for that size",
        )
    if not params.networks:
        raise _wrong("networks", params.networks, "at least one network")
    return params


def weights_file(weights: str) -> Path | None:
    """The file that a network's `weights` names; None for torchvision's own names and for `none`."""
    return Path(weights).expanduser() if weights.endswith(WEIGHTS_SUFFIXES) else None


def without_folders(params: Params) -> Params:
    """Photos and weights by their names alone, for what is handed on: it is the same from any folder."""
    networks = {name: Network(Path(network.weights).name) for name, network in params.networks.items()}
    return replace(params, source=Path(params.source).name, networks=networks)


def _read_value(kind: Any, value: Any, key: str) -> Any:
    """`value` as the type `kind`: a dataclass, dict[str, …], Literal, Annotated number, bool or str."""
    if is_dataclass(kind):
        return _read_section(kind, value, key)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise _wrong(key, value, "a mapping from names to settings")
        return {str(name): _read_value(get_args(kind)[1], item, f"{key}.{name}") for name, item in value.items()}
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise _wrong(key, value, f"one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is Annotated:
        number_type, allowed = get_args(kind)
        number = _read_number(number_type, value)
        if number is None or number not in allowed:
            raise _wrong(key, value, f"{'a whole number' if number_type is int else 'a number'}, {allowed}")
        return number
    if not isinstance(value, kind) or value == "":
        raise _wrong(key, value, {bool: "true or false", str: "text"}[kind])
    return value


def _read_section(kind: type, value: Any, key: str) -> Any:
    expected = [field.name for field in fields(kind)]
    where = f"{key}." if key else ""
    if not isinstance(value, dict):
        raise _wrong(key or "the file", value, f"a mapping with the keys {', '.join(expected)}")
    for name in value:
        if name not in expected:
            raise UserError(f"params.yaml: unknown key {where}{name}; known here: {', '.join(expected)}")
    for name in expected:
        if name not in value:
            raise UserError(f"params.yaml: the key {where}{name} is missing")
    types = get_type_hints(kind, include_extras=True)
    return kind(**{name: _read_value(types[name], value[name], f"{where}{name}") for name in expected})


def _read_number(number_type: type, value: Any) -> float | None:
    """`value` as a finite int or float, or None. YAML 1.1 reads `5e-4` as text; it means 0.0005 here."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (number_type is int and number != int(number)):
        return None
    return number_type(number)


def _wrong(key: str, value: Any, expected: str) -> UserError:
    return UserError(f"params.yaml: {key} is {value!r}; expected {expected}")
