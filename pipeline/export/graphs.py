"""The networks and the ensemble as ONNX graphs, from an image to probabilities."""

import json
import logging
import warnings
from pathlib import Path

from pipeline.networks.normalisation import Normalisation
from pipeline.networks.predicting import TestTimeFlip
from pipeline.scores.combining import Combination

import onnx
import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
import torch
from torch import Tensor, nn

OPSET, IR_VERSION = 18, 8  # old enough for onnxruntime 1.17 and OpenCV 4.11


class ImageToProbabilities(nn.Module):
    """Maps one image, float32 RGB [1, 3, size, size] from 0 to 255, to probabilities, float32 [1, classes].

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


def write_onnx(graph: ImageToProbabilities, classes: list[str], file: Path) -> None:
    """Write `graph` to `file`, with its weights and, in its metadata, the names of the classes."""
    size = len(graph.mirrored)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # about PyTorch's internals
        program = torch.onnx.export(
            graph.eval(),
            (torch.zeros(1, 3, size, size),),
            dynamo=True,
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # as with `dynamo`
    model = program.model_proto
    model.ir_version = IR_VERSION
    for node in model.graph.node:
        del node.metadata_props[:]  # paths and lines of this computer's code
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes)})
    onnx.save(model, file)
