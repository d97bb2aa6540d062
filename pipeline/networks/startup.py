"""Import torchvision without torch._dynamo, which takes more than a second to import.

torchvision refers to one of its functions, in an operation for detection that nothing here uses.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

NEEDED = "torch._dynamo.utils"


class _Postponed(ModuleType):
    """A stand-in for a module, which imports it when one of its functions is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for some of these
            raise AttributeError(name)
        return lambda *args: getattr(importlib.import_module(self.__name__), name)(*args)


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
