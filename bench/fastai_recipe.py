"""The recipe of compare.py as a fastai user would write it.

Usage and output are those of notebook.py. The head is fastai's own, with the same width and dropout; as fastai does by
default, everything but the head and BatchNorm is frozen.
"""

import json
import sys
import time
from pathlib import Path

from notebook import load_network

import torch
import yaml
from fastai.vision.all import (  # pyrefly: ignore[missing-import]
    DataLoaders,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    ResizeMethod,
    accuracy,
    get_image_files,
    imagenet_stats,
    model_meta,
    set_seed,
    vision_learner,
)
from torchvision import models


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    train = params["train"]
    predictions = torch.zeros(())
    for name, network in params["networks"].items():
        set_seed(train["seed"])
        loaders = ImageDataLoaders.from_folder(
            "photos",
            train="train",
            valid="validation",
            item_tfms=Resize(params["prepare"]["image_size"], ResizeMethod.Squish),
            batch_tfms=Normalize.from_stats(*imagenet_stats),
            bs=train["batch_size"],
            num_workers=int(sys.argv[1]),
        )
        head = {"lin_ftrs": [train["head_width"]], "ps": train["dropout"]}
        learner = make_learner(loaders, name, network["weights"], **head)
        with learner.no_logging(), learner.no_bar():
            start = time.perf_counter()
            learner.fit(train["epochs"], float(params["lr"]))
            fitting = time.perf_counter() - start
            start = time.perf_counter()
            learner.validate()
            fitting -= train["epochs"] * (time.perf_counter() - start)
            start = time.perf_counter()
            files = get_image_files("photos/test").sorted()
            probabilities, labels = learner.get_preds(dl=loaders.test_dl(files, with_labels=True))
            seconds = time.perf_counter() - start
        predictions = predictions + probabilities.log()
        result = {
            "network": name,
            "train_rate": train["epochs"] * len(loaders.train_ds) / fitting,
            "inference_rate": len(files) / seconds,
            "accuracy": (probabilities.argmax(1) == labels).double().mean().item(),
        }
        print(json.dumps(result), flush=True)
    ensemble = (predictions.argmax(1) == labels).double().mean().item()
    print(json.dumps({"network": "ensemble", "accuracy": ensemble}), file=sys.stdout)


def make_learner(loaders: DataLoaders, name: str, weights: str, **head: object) -> Learner:
    """fastai's vision_learner for torchvision's network, with everything but the head and BatchNorm frozen."""
    meta = model_meta[getattr(models, name)]
    learner = vision_learner(
        loaders,
        lambda **_: load_network(name, weights),
        metrics=accuracy,
        pretrained=False,  # the weights are loaded by `load_network`
        normalize=False,
        cut=meta["cut"],
        splitter=meta["split"],
        **head,
    )
    learner.freeze()
    return learner


if __name__ == "__main__":
    main()
