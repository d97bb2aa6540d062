"""fastai's own recipe with its own defaults: `vision_learner(...).fine_tune(1)`, as in its quick start.

Usage and output are those of torchvision_recipe.py. The first epoch trains only the head, the second one everything.
"""

import os
from functools import partial
from pathlib import Path

from fastai_recipe import pretrained

import yaml
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    imagenet_stats,
    model_meta,
    set_seed,
    vision_learner,
)
from torchvision import models


class PrintAccuracy(Callback):
    """Prints a line after each epoch."""

    def __init__(self, network: str) -> None:
        self.network, self.epochs = network, 0

    def after_epoch(self) -> None:
        self.epochs += 1
        value = float(self.recorder.values[-1][-1])
        print(f"{self.network} epoch {self.epochs}: validation accuracy {value:.6f}", flush=True)


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    name, network = next(iter(params["networks"].items()))
    set_seed(params["train"]["seed"])
    loaders = ImageDataLoaders.from_folder(
        "photos",
        train="train",
        valid="validation",
        item_tfms=Resize(params["prepare"]["image_size"]),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        num_workers=os.cpu_count(),
    )
    meta = model_meta[getattr(models, name)]
    learner = vision_learner(
        loaders,
        partial(pretrained, name, network["weights"]),
        metrics=accuracy,
        pretrained=False,  # not loaded by fastai but by `pretrained` above
        normalize=False,
        cut=meta["cut"],
        splitter=meta["split"],
    )
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1, cbs=PrintAccuracy(name))


if __name__ == "__main__":
    main()
