"""Read params.yaml and check it before any work starts. The comments in that file explain each key."""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pipeline.core.class_names import normal_form
from pipeline.core.errors import UserError
from pipeline.core.paths import PARAMS

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError

AUTO = "auto"
MOST_THREADS = 1024
ROUNDING = 1e-9  # 0.7 + 0.2 + 0.1 is a little more than 1
LEAST_CLASSES = 2
LEAST_SIZE, LARGEST_SIZE = 32, 1024  # pixels a side; most networks scale an image down to a 32nd
WEIGHTS_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
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
    if len(names) < max(LEAST_CLASSES, len(values)) or not all(names):
        raise ValueError(f"{expected}, such as [cat, dog]")
    first: dict[str, str] = {}
    for name in names:
        if (form := normal_form(name)) in first:
            raise ValueError(f"{expected}; {first[form]} and {name} are spellings of one name")
        first[form] = name
    return names


def _threads(value: Any) -> Any:
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_THREADS):
        return value
    raise ValueError(f"expected auto, or a number from 1 to {MOST_THREADS}")


def _split_size(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            if 0 < (share := float(value)) < 1:  # a share in quotes; no folder has such a name
                return share
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= LEAST_CLASSES
    is_share = isinstance(value, float) and 0 < value < 1
    if is_count or is_share or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError(
        f"expected {LEAST_CLASSES} photos or more, a share such as 0.2, or the name of a folder of the source"
    )


def _size_or_zero(value: int) -> int:
    if value and not LEAST_SIZE <= value <= LARGEST_SIZE:
        raise ValueError(f"expected 0 (the same as prepare.image_size), or {LEAST_SIZE} to {LARGEST_SIZE}")
    return value


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


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(Section):
    weights: Text


class Split(Section):
    """For each split the number of photos, a share of them, or the name of a given split."""

    train: SplitSize
    validation: SplitSize
    test: SplitSize


class Prepare(Section):
    source: Text
    labels: Text
    image_size: Annotated[Integer, Field(ge=LEAST_SIZE, le=LARGEST_SIZE)]
    resize: Literal["squeeze", "center_crop"]
    split: Split
    seed: Seed


class Train(Section):
    launcher: Text
    layers: Literal["head", "batchnorm", "last_half", "all"]
    body_lr_factor: Share
    batchnorm_statistics: Literal["fixed", "updated"]
    head_init: Literal["fitted", "random"]
    head_width: Annotated[Integer, Field(ge=0)]
    dropout: Annotated[Number, Field(ge=0, le=0.99)]
    optimizer: Literal["adam", "sgd"]
    momentum: Annotated[Number, Field(ge=0, le=0.9999)]
    lr_schedule: Literal["step", "one_cycle"]
    lr_step_size: Annotated[Integer, Field(ge=0)]
    lr_gamma: Share
    label_smoothing: Annotated[Number, Field(ge=0, le=0.9)]
    augment: Literal["none", "flip", "crop_and_flip"]
    crop_scale: Share
    image_size: Annotated[Integer, AfterValidator(_size_or_zero)]
    batch_size: Annotated[Integer, Field(ge=2)]
    epochs: Count
    seed: Seed


class Evaluate(Section):
    test_time_flip: StrictBool


class Ensemble(Section):
    method: Literal["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"]


class Reject(Section):
    share: Annotated[Number, Field(ge=0, le=0.5)]


class Params(Section):
    """All of params.yaml."""

    classes: Classes
    lr: Annotated[Number, Field(gt=0)]
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"]
    precision: Literal["auto", "float32", "bfloat16"]
    threads: Threads
    networks: Annotated[dict[str, Network], Field(min_length=1)]
    prepare: Prepare
    train: Train
    evaluate: Evaluate
    ensemble: Ensemble
    reject: Reject


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML would take without a word: a key that stands twice, and values that it changes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise UserError(f"params.yaml: {name} stands in lines {lines[name]} and {line}; delete one of the two")
            lines[name] = line
        return super().construct_mapping(node, deep)

    def construct_unchanged(self, node: yaml.ScalarNode) -> int | float:
        """Construct a number. Refuses dates, and 007, 010 and 12:30, which YAML reads as 7, 8 and 750."""
        text, value = node.value, yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        is_date = isinstance(value, date)
        if not is_date and (str(value) == text or (isinstance(value, float) and ":" not in text)):
            return value
        read_as = "a date; put it in quotes" if is_date else f"{value}; put it in quotes, or write {value}"
        raise UserError(f"params.yaml, line {node.start_mark.line + 1}: YAML reads {text} as {read_as}")


for _tag in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_unchanged)


def read_params(path: Path = PARAMS) -> Params:
    """Read and check every key of `path`.

    Raises UserError with one line per mistake, which names the key (or the line number, for invalid YAML), its value
    and what was expected.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist in {Path.cwd()}; run this from the project's root") from None
    except Exception as error:  # not only YAML's own errors: also invalid UTF-8 and impossible dates
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise UserError(*map(_describe, error.errors())) from None
    _check_together(params)
    return params


def weights_file(weights: str) -> Path | None:
    """The path if a network's `weights` is a file, else None (for torchvision's names and `none`)."""
    return Path(weights).expanduser() if weights.endswith(WEIGHTS_SUFFIXES) else None


def find_weights(name: str, weights: str) -> Path | None:
    """As `weights_file`, of `networks.<name>.weights`. Raises UserError if there is no such file."""
    path = weights_file(weights)
    if path and not path.exists():
        raise UserError(f"networks.{name}.weights: {path} does not exist; check the path")
    return path


def without_folders(params: Params) -> Params:
    """Reduce the paths of photos and weights to file names, so that pages are the same in every folder."""
    networks = {name: Network(weights=Path(network.weights).name) for name, network in params.networks.items()}
    prepare = params.prepare.model_copy(
        update={"source": Path(params.prepare.source).name, "labels": Path(params.prepare.labels).name}
    )
    return params.model_copy(update={"networks": networks, "prepare": prepare})


def flatten(params: dict, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested params with their dotted keys."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _check_together(params: Params) -> None:
    """Raise UserError if two values contradict each other."""
    train, prepare = params.train, params.prepare
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
    if isinstance(prepare.split.train, int) and train.batch_size > prepare.split.train:
        raise UserError(
            f"params.yaml: train.batch_size is {train.batch_size}; expected at most prepare.split.train "
            f"({prepare.split.train})"
        )
    if train.head_init == "fitted" and train.head_width:
        raise UserError(
            f"params.yaml: train.head_width is {train.head_width}; expected 0, a linear head, because train.head_init "
            "is fitted; or set train.head_init to random"
        )
    if train.image_size > prepare.image_size:
        raise UserError(
            f"params.yaml: train.image_size is {train.image_size}; expected at most prepare.image_size "
            f"({prepare.image_size}), or 0 to use that size"
        )


def _describe(error: Any) -> str:
    """Format a pydantic error as one line: the key, its value and what was expected."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"params.yaml: the key {key} is missing"
    if error["type"] == "extra_forbidden":
        return f"params.yaml: unknown key {key}; remove it or correct its name"
    value = "empty" if error["input"] is None else repr(error["input"])
    return f"params.yaml: {key or 'the file'} is {value}; {_expected(error)}"


def _expected(error: Any) -> str:
    """What was expected instead of the value of a pydantic error."""
    if error["type"] == "model_type":
        section = next(kind for kind in Section.__subclasses__() if kind.__name__ == error["ctx"]["class_name"])
        return f"expected the keys {', '.join(section.model_fields)}"
    if error["type"] == "dict_type":
        return "expected names of networks, each with its weights, such as resnet18: {weights: IMAGENET1K_V1}"
    text = error["msg"].removeprefix("Value error, ")
    return f"{text[0].lower()}{text[1:]}"
