"""The section `train` of params.yaml."""

from typing import Annotated, Any, Literal

from pipeline.core.params import MAX_SIZE, MIN_SIZE, Count, Integer, Network, Number, Section, Seed, Share, Text

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


def own_params(network: Network, lr: float, train: Train) -> dict[str, Any]:
    """`lr` and `train` as this network is trained with: with its own values, where it has some."""
    return {
        "lr": lr if network.lr is None else network.lr,
        "train": Train.model_validate(train.model_dump() | network.train),
    }


def key_for(name: str, network: Network, key: str) -> str:
    """Where params.yaml has the value of `key` (`lr`, or one of `train`) that the network `name` is trained with."""
    section, _, value = key.rpartition(".")
    has_own = value in network.train if section else network.lr is not None
    return f"networks.{name}.{key}" if has_own else key
