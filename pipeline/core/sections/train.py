"""The section `train` of params.yaml."""

from typing import Annotated, Literal

from pipeline.core.params import MAX_SIZE, MIN_SIZE, Count, Integer, Number, Section, Seed, Share, Text

from pydantic import Field


class Train(Section):
    launcher: Text
    layers: Literal["head", "batchnorm", "last_half", "all"]
    backbone_lr_factor: Share
    batchnorm_statistics: Literal["fixed", "updated"]
    head_init: Literal["fitted", "random"]
    head_width: Annotated[Integer, Field(ge=1)] | None
    dropout: Annotated[Number, Field(ge=0, le=0.99)]
    optimizer: Literal["adam", "sgd"]
    momentum: Annotated[Number, Field(ge=0, le=0.9999)]
    lr_schedule: Literal["step", "one_cycle"]
    lr_step_size: Annotated[Integer, Field(ge=1)] | None
    lr_gamma: Share
    class_weights: Literal["none", "balanced"]
    label_smoothing: Annotated[Number, Field(ge=0, le=0.9)]
    augment: Literal["none", "flip", "crop_and_flip"]
    crop_scale: Share
    image_size: Annotated[Integer, Field(ge=MIN_SIZE, le=MAX_SIZE)] | None
    batch_size: Annotated[Integer, Field(ge=2)]
    epochs: Count
    seed: Seed
