"""Import PyTorch, torchvision and timm quickly: without torch._dynamo and without looking for garbage.

torch._dynamo takes more than a second to import. It is part of torch.compile, which is not used here. torchvision
refers to one of its functions, in an operation for detection; timm and optimizers tell it what not to compile. No
setting of PyTorch avoids the import: it comes with TORCHDYNAMO_DISABLE=1, too.
"""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

NEEDED = "torch._dynamo.utils"


class _Postponed(ModuleType):
    """A stand-in for a module, which imports it when one of its functions is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for some of these
            raise AttributeError(name)
        return lambda *args: getattr(importlib.import_module(self.__name__), name)(*args)


@contextmanager
def without_collecting_garbage() -> Iterator[None]:
    """Do not look for garbage meanwhile: worthwhile where many objects are created, and most of them stay.

    It takes a fifth of importing PyTorch, and a sixth of exporting a network.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_torchvision() -> None:
    """Import torchvision with a stand-in for torch._dynamo.utils, unless that is already imported."""
    if NEEDED in sys.modules:
        importlib.import_module("torchvision")
        return
    sys.modules[NEEDED] = _Postponed(NEEDED)
    try:
        importlib.import_module("torchvision")
    finally:
        del sys.modules[NEEDED]


def import_timm() -> ModuleType:
    """Import timm without what it does for torch.compile; raises ModuleNotFoundError if it is not installed."""
    import torch

    disable, torch.compiler.disable = torch.compiler.disable, lambda fn=None, recursive=True, *, reason=None: fn
    try:
        with without_collecting_garbage():
            return importlib.import_module("timm")
    finally:
        torch.compiler.disable = disable


def keep_optimizers_from_importing_dynamo() -> None:
    """Remove what optimizers do for torch.compile; what they compute stays the same.

    On the first call of some methods (torch._disable_dynamo), torch._dynamo wraps them and keeps the result in an
    attribute, which is set here instead; `step` also tells it where to break graphs. If another version of PyTorch has
    no such methods, nothing changes.
    """
    import torch
    from torch.optim import SGD, Adam, Optimizer

    for method in vars(Optimizer).values():
        if getattr(method, "__globals__", {}).get("__name__") == "torch._compile":
            setattr(method.__wrapped__, "__dynamo_disable", method.__wrapped__)
    for kind in (Adam, SGD):
        if kind.step.__code__.co_name == "_use_grad":
            kind.step = torch.no_grad()(kind.step.__wrapped__)  # pyrefly: ignore[missing-attribute]
