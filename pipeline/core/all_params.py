"""All of params.yaml, for the report and the tools. A stage that reads less depends on less."""

from pathlib import Path

from pipeline.core.params import (
    Classes,
    Device,
    LearningRate,
    Networks,
    Precision,
    Section,
    Threads,
    as_written,
    flatten,
    weights_file,
)
from pipeline.core.sections.ensemble import Ensemble
from pipeline.core.sections.evaluate import Evaluate
from pipeline.core.sections.prepare import Prepare
from pipeline.core.sections.reject import Reject
from pipeline.core.sections.train import Train


class Params(Section):
    """All of params.yaml."""

    classes: Classes
    lr: LearningRate
    device: Device
    precision: Precision
    threads: Threads
    networks: Networks
    prepare: Prepare
    train: Train
    evaluate: Evaluate
    ensemble: Ensemble
    reject: Reject


def describe_own_params(params: Params) -> dict[str, str]:
    """By network, for those that have some: its own values of `lr` and `train`, as text."""
    texts = {}
    for name, network in params.networks.items():
        own = {key.removeprefix("train."): value for key, value in flatten(network.model_dump(exclude={"weights"}))}
        if own:
            texts[name] = ", ".join(f"{key} {as_written(value)}" for key, value in own.items())
    return texts


def without_folders(params: Params) -> Params:
    """Reduce the paths of photos and weights to file names, so that pages are the same in every folder."""
    networks = dict(params.networks)
    for name, network in networks.items():
        if path := weights_file(network.weights):  # not timm's names, which have a slash
            networks[name] = network.model_copy(update={"weights": path.name})
    prepare = params.prepare.model_copy(
        update={"source": Path(params.prepare.source).name, "labels": Path(params.prepare.labels).name}
    )
    return params.model_copy(update={"networks": networks, "prepare": prepare})
