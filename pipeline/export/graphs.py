"""The trained models as ONNX graphs: from an image to probabilities, or to its similarity to known photos."""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.inference.ensemble import Ensemble
from pipeline.networks.normalisation import Normalisation
from pipeline.networks.predicting import TestTimeFlip
from pipeline.networks.rejection import NEIGHBOUR, Rejection
from pipeline.networks.startup import without_collecting_garbage
from pipeline.scores.combining import Combination
from pipeline.scores.scoring import ENSEMBLE

import numpy as np
import onnx
import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
import torch
from torch import Tensor, nn

OPSET, IR_VERSION = 18, 8  # old enough for onnxruntime 1.17 and OpenCV 4.11
REJECTION = "rejection"  # the name of the graph that rejects photos


@dataclass(frozen=True)
class Graph:
    """A module that maps one image, float32 RGB [1, 3, size, size] from 0 to 255, to its only output.

    The file's metadata has a JSON value for each key of `metadata`.
    """

    module: nn.Module
    output: str
    metadata: Mapping[str, object]


def graphs_of(ensemble: Ensemble) -> dict[str, Graph]:
    """A graph for each network, for the ensemble if it is more than its only network, and for rejecting photos."""
    members = {name: ([name], Combination("mean_logits")) for name in ensemble.networks}
    if ensemble.shown_members:
        members[ENSEMBLE] = (list(ensemble.networks), ensemble.combination)
    graphs = {}
    for graph, (names, combination) in members.items():
        networks = [ensemble.networks[name] for name in names]
        normalisations = [ensemble.normalisations[name] for name in names]
        module = ImageToProbabilities(networks, normalisations, combination, ensemble.image_size)
        graphs[graph] = Graph(module, "probabilities", {"classes": ensemble.classes})
    if ensemble.rejection:
        module, metadata = ImageToSimilarity(ensemble.rejection), {"threshold": ensemble.rejection.threshold}
        graphs[REJECTION] = Graph(module, "similarity", metadata)
    return graphs


def expected_answers(ensemble: Ensemble, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What each of `graphs_of` should answer to uint8 images [N, size, size, 3]: arrays [N, classes] or [N, 1]."""
    combined, members = ensemble.probabilities(pixels)
    similarities = {REJECTION: ensemble.similarities(pixels)[:, np.newaxis]} if ensemble.can_reject else {}
    return {**members, ENSEMBLE: combined, **similarities}


class ImageToProbabilities(nn.Module):
    """Maps one image to probabilities, float32 [1, classes].

    Computes what the pipeline computes, with operations that runtimes agree on: no resizing (OpenVINO does not
    antialias), and no negative steps, comparisons or indices that drop an axis (OpenCV fails or is silently wrong).
    """

    def __init__(
        self, networks: list[nn.Module], normalisations: list[Normalisation], combination: Combination, size: int
    ) -> None:
        """The networks expect images normalised by `normalisations`, one each."""
        super().__init__()
        self.flips = [isinstance(network, TestTimeFlip) for network in networks]
        self.networks = nn.ModuleList(
            network.network if isinstance(network, TestTimeFlip) else network for network in networks
        )
        self.combination = combination
        different = list(dict.fromkeys(normalisations))
        self.normalising = nn.ModuleList(map(_Normalising, different))
        self.number_of = [different.index(normalisation) for normalisation in normalisations]
        self.register_buffer("mirrored", torch.arange(size - 1, -1, -1))

    def forward(self, image: Tensor) -> Tensor:
        images = [normalise(image) for normalise in self.normalising]
        member_logits = []
        for network, number, flips in zip(self.networks, self.number_of, self.flips, strict=True):
            logits = network(images[number])
            if flips:
                logits = (logits + network(images[number].index_select(3, self.mirrored))) / 2
            member_logits.append(logits)
        return self.combination(member_logits, softmax=softmax, votes=votes, array=torch.tensor)


class ImageToSimilarity(nn.Module):
    """Maps one image to its similarity to known photos, as `Rejection` measures it: float32 [1, 1]."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__()
        self.normalise = _Normalising(Normalisation.of(rejection.description))
        self.network = rejection.network
        self.neighbour = min(NEIGHBOUR, len(rejection.references))
        self.register_buffer("references", rejection.references.T)

    def forward(self, image: Tensor) -> Tensor:
        features = nn.functional.normalize(self.network(self.normalise(image)))
        return (features @ self.references).topk(self.neighbour, dim=1).values[:, self.neighbour - 1 :]


class _Normalising(nn.Module):
    """A Normalisation in a graph, for float32 images [1, 3, size, size] from 0 to 255."""

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(normalisation.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(normalisation.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def votes(logits: Tensor) -> Tensor:
    """1.0 for the highest logit of each row, 0.0 for the others."""
    return ((logits - logits.amax(dim=1, keepdim=True)) * 2.0**100 + 1).clamp(0, 1)


def write_onnx(graph: Graph, size: int, file: Path) -> None:
    """Write `graph`, for images of `size` pixels a side, to `file`, with its weights."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The warnings are about PyTorch's internals.
    with warnings.catch_warnings(action="ignore"), without_collecting_garbage():
        program = torch.onnx.export(
            graph.module.eval(),
            (torch.zeros(1, 3, size, size),),
            dynamo=True,
            input_names=["image"],
            output_names=[graph.output],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # as with `dynamo`
    model = program.model_proto
    model.ir_version = IR_VERSION
    for node in model.graph.node:
        del node.metadata_props[:]  # paths and lines of this computer's code
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in graph.metadata.items()})
    onnx.save(model, file)
