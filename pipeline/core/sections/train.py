"""The section `train` of params.yaml."""

from typing import Annotated, Literal

from pipeline.core.params import LARGEST_SIZE, LEAST_SIZE, Count, Integer, Number, Section, Seed, Share, Text

from pydantic import AfterValidator, Field


def _size_or_zero(value: int) -> int:
    if value and not LEAST_SIZE <= value <= LARGEST_SIZE:
        raise ValueError(f"expected 0 (the same as prepare.image_size), or {LEAST_SIZE} to {LARGEST_SIZE}")
    return value


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
