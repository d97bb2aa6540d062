"""The section `train` of params.yaml."""

from typing import Annotated, Any, Literal

from pipeline.core.params import MAX_SIZE, MIN_SIZE, Count, Integer, Network, Number, Section, Seed, Share, Text

from pydantic import Field, PrivateAttr


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

    _own_keys: dict[str, str] = PrivateAttr(default_factory=dict)  # set by own_params

    def key(self, name: str) -> str:
        """Where params.yaml has the value of `name` (`lr` or a field) that a network is trained with.

        It is `train.epochs`, for example, or `networks.resnet18.train.epochs` if that network has its own.
        """
        return self._own_keys.get(name, name if name == "lr" else f"train.{name}")


def own_params(name: str, network: Network, lr: float, train: Train) -> dict[str, Any]:
    """`lr` and `train` as the network `name` is trained with: with its own values, where it has some."""
    own_train = Train.model_validate(train.model_dump() | network.train)
    own_train._own_keys = {key: f"networks.{name}.train.{key}" for key in network.train}
    if network.lr is None:
        return {"lr": lr, "train": own_train}
    own_train._own_keys["lr"] = f"networks.{name}.lr"
    return {"lr": network.lr, "train": own_train}
