"""Models: trained weights and the description needed to use them, as safetensors files."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError, first_line, list_some
from pipeline.core.packed import difference
from pipeline.core.paths import model, packed_split
from pipeline.networks.building import bare_network, replace_output, with_version
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.from_timm import fit_to_size, is_timms

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def save_model(path: Path, state_dict: dict[str, Tensor], description: dict) -> None:
    """Write a state_dict and the `description` that `load_model` needs; the same content gives the same bytes."""
    tensors = {key: tensor.contiguous() for key, tensor in state_dict.items()}
    path.write_bytes(save(tensors, metadata={"network": json.dumps(description, sort_keys=True)}))


class _EmptyOnMeta(TorchFunctionMode):
    """New weights take neither memory nor random numbers, because those of a file replace them.

    Only what layers create with torch.empty: RegNets compute with other tensors while they are built. Not for timm's
    networks, which may have such tensors that are not in the file.
    """

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {})
        return func(*args, **kwargs)


def load_model(path: Path) -> tuple[nn.Module, dict]:
    """Return a network written by `save_model`, and its description. Raises UserError if the file is not a model."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["network"])
            # Copies, because these tensors are mapped from the file, and would change with it.
            state_dict = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a dict)
        name = description["network"]
        with nullcontext() if is_timms(name) else _EmptyOnMeta():
            network = bare_network(name)
            replace_output(network, len(description["classes"]), description["head_width"], description["dropout"])
        network.load_state_dict(with_version(state_dict, network), assign=True)
        fit_to_size(network, description.get("image_size", 0))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a model written by this pipeline ({first_line(error)}); run `dvc repro` to restore it"
        ) from None
    return network, description


def load_trained(name: str, splits: dict[str, PackedSplit]) -> tuple[nn.Module, dict]:
    """Load a trained network and its description.

    Raises UserError if the file contains another network, or one that was trained with other classes or a different
    image size, resize or split, whose training photos may include these test photos.
    """
    network, description = load_model(model(name))
    if description["network"] != name:
        raise UserError(f"{model(name)} contains {description['network']}; expected {name}; run `dvc repro`")
    for split, packed in splits.items():
        different = difference(packed.description, description)
        if different == "classes":
            raise UserError(
                f"{model(name)} was trained for the classes {list_some(description['classes'])}, but "
                f"{packed_split(split)} has {list_some(packed.description['classes'])}; run `dvc repro`"
            )
        if different:
            raise UserError(
                f"{model(name)} was trained with a different {different} than {packed_split(split)} has; run `dvc "
                "repro`"
            )
    return network, description
