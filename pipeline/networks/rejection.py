"""Recognise photos that show none of the classes, by how similar they are to photos that do.

A photo's similarity is the cosine between its features and those of the fifth most similar of some photos in train (Sun
et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022). The features are those of the
pretrained network: training on a few classes makes a network discard what separates them from everything else.
docs/none-of-these.md compares this with other scores.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError, first_line
from pipeline.networks.building import bare_network, head_name, replace_output, with_version
from pipeline.networks.compute import autocast, to_device
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.folding import fold_batchnorm
from pipeline.networks.normalisation import Normalisation
from pipeline.networks.predicting import predict_features

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

MAX_REFERENCES = 2000  # photos in train
NEIGHBOUR = 5  # the similarity is that to the fifth most similar one


@dataclass(frozen=True)
class Rejection:
    """A network's features of known photos, and the similarity below which a photo shows none of the classes."""

    network: nn.Module  # from images to features, ready for inference
    references: Tensor  # float32 [M, features], of length 1
    threshold: float
    description: dict  # of the network and the prepared photos

    @torch.inference_mode()
    def similarities(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """How similar each of these uint8 images [N, 3, size, size] is to known photos: float32 [N], at most 1.

        The result is on the CPU.
        """
        with autocast(images.device, dtype):
            features = self.network(Normalisation.of(self.description)(images))
        return similarities(features.float().cpu(), self.references)


def similarities(features: Tensor, references: Tensor) -> Tensor:
    """The cosine between each of `features` [N, D] and the NEIGHBOUR-th most similar of `references`: float32 [N]."""
    cosines = nn.functional.normalize(features) @ references.T
    return cosines.topk(min(NEIGHBOUR, len(references)), dim=1).values[:, -1]


def make_references(network: nn.Module, train: PackedSplit, dtype: torch.dtype) -> Tensor:
    """The features of train's first photos and at least one of each class, scaled to length 1."""
    features = predict_features(network, train.sample(MAX_REFERENCES), dtype, "known photos")
    return nn.functional.normalize(features)


def choose_threshold(similarities: Tensor, share: float) -> float:
    """The largest similarity below which at most a `share` of these `similarities` [N] lie."""
    return similarities.sort().values[int(share * len(similarities))].item()


def save_rejection(path: Path, network: nn.Module, references: Tensor, description: dict) -> None:
    """Write what `load_rejection` reads; `network` has a linear head, which is not kept.

    `description` holds network, false_rejection_rate, threshold, the normalisation and what prepare says of the photos.
    """
    head = f"{head_name(network)}."
    backbone = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(head)}
    tensors = {f"network.{key}": tensor.cpu().contiguous() for key, tensor in backbone.items()}
    metadata = {"rejection": json.dumps(description, sort_keys=True)}
    path.write_bytes(save(tensors | {"references": references}, metadata))


def load_rejection(path: Path, rate: float, device: torch.device) -> Rejection:
    """Read what `save_rejection` wrote. Raises UserError if the file is something else or for another rate."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads(file.metadata()["rejection"])
            if description["false_rejection_rate"] != rate:
                raise UserError(
                    f"{path} is for reject.false_rejection_rate {description['false_rejection_rate']}, but params.yaml "
                    f"says {rate}; run `dvc repro`"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        references = tensors.pop("references")
        network = bare_network(description["network"])
        replace_output(network, classes=1, head_width=None, dropout=0)
        network.set_submodule(head_name(network), nn.Identity())
        backbone = {key.removeprefix("network."): tensor for key, tensor in tensors.items()}
        network.load_state_dict(with_version(backbone, network))
        threshold = description["threshold"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} was not written by this pipeline ({first_line(error)}); run `dvc repro`") from None
    return Rejection(to_device(fold_batchnorm(network), device), references, threshold, description)
