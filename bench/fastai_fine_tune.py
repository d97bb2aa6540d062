"""fastai's own recipe with its own defaults: `vision_learner(...).fine_tune(1)`, as in its quick start.

Usage and output are those of torchvision_recipe.py. The first epoch trains only the head, the second one everything.
"""

import sys
from pathlib import Path

from fastai_recipe import make_learner

import yaml
from fastai.vision.all import (  # pyrefly: ignore[missing-import]
    Callback,
    ImageDataLoaders,
    Normalize,
    Resize,
    imagenet_stats,
    set_seed,
)


class PrintAccuracy(Callback):
    """Prints a line after each epoch."""

    order = 60  # after fastai's Recorder, which has 50

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
        num_workers=int(sys.argv[1]),
    )
    learner = make_learner(loaders, name, network["weights"])
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1, cbs=PrintAccuracy(name))


if __name__ == "__main__":
    main()
