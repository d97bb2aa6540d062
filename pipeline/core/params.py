"""The types of the values in params.yaml, with their limits. The comments in that file explain each key."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pipeline.core.class_names import normal_form
from pipeline.core.errors import UserError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

AUTO = "auto"
MAX_THREADS = 1024
ROUNDING = 1e-9  # 0.7 + 0.2 + 0.1 is a little more than 1
MIN_CLASSES = 2
MIN_SIZE, MAX_SIZE = 32, 1024  # pixels a side; most networks scale an image down to a 32nd
WEIGHTS_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("expected a number; remove the key to use the value for all networks")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    raise ValueError("expected text" + ("; put it in quotes" if isinstance(value, bool | int | float) else ""))


def _classes(value: Any) -> Any:
    if value == AUTO:
        return value
    values = value if isinstance(value, list | tuple) else []
    if any(name is None or isinstance(name, bool | float) for name in values):
        raise ValueError(
            "expected names; put yes, no, on, off, null and numbers with a decimal point in quotes, because YAML does "
            "not read them as text"
        )
    names = [str(name).strip() for name in values if isinstance(name, str | int)]
    expected = "expected auto, or a list of at least two different names"
    if len(names) < max(MIN_CLASSES, len(values)) or not all(names):
        raise ValueError(f"{expected}, such as [cat, dog]")
    first: dict[str, str] = {}
    for name in names:
        if (form := normal_form(name)) in first:
            raise ValueError(f"{expected}; {first[form]} and {name} are spellings of one name")
        first[form] = name
    return names


def _threads(value: Any) -> Any:
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_THREADS):
        return value
    raise ValueError(f"expected auto, or a number from 1 to {MAX_THREADS}")


def _split_size(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            if 0 < (share := float(value)) < 1:  # a share in quotes; no folder has such a name
                return share
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= MIN_CLASSES
    is_share = isinstance(value, float) and 0 < value < 1
    if is_count or is_share or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError(
        f"expected {MIN_CLASSES} photos or more, a share such as 0.2, or the name of a folder of the source"
    )


# Numbers may also be strings, because YAML 1.1 parses 5e-4 as a string.
Integer = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Count = Annotated[Integer, Field(ge=1)]
Classes = Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_classes)]
Threads = Annotated[Literal["auto"] | int, BeforeValidator(_threads)]
SplitSize = Annotated[int | float | str, BeforeValidator(_split_size)]
Seed = Annotated[Integer, Field(ge=0, le=2**32 - 1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1), BeforeValidator(_text)]
LearningRate = Annotated[Number, Field(gt=0)]
Device = Literal["auto", "cuda", "mps", "xpu", "cpu"]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(Section):
    """Weights, and perhaps the network's own `lr` and values of `train`, which take precedence."""

    weights: Text
    lr: Annotated[LearningRate | None, BeforeValidator(_given), Field(exclude_if=lambda lr: lr is None)] = None
    train: dict[str, Any] = {}  # checked with the section `train`


Networks = Annotated[dict[str, Network], Field(min_length=1)]


def weights_file(weights: str) -> Path | None:
    """The path if a network's `weights` is a file, else None (for torchvision's and timm's names and `none`)."""
    return Path(weights).expanduser() if weights.endswith(WEIGHTS_SUFFIXES) else None


def find_weights(name: str, weights: str) -> Path | None:
    """Like `weights_file`, for `networks.<name>.weights`. Raises UserError if there is no such file."""
    path = weights_file(weights)
    if path and not path.exists():
        raise UserError(f"networks.{name}.weights: {path} does not exist; check the path")
    return path


def flatten(params: dict, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested params with their dotted keys."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def as_written(value: Any) -> str:
    """A single value of params.yaml as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
