"""Devices: which one `device` in params.yaml means, what it is called, and its free memory."""

import os
from contextlib import suppress

from pipeline.core.errors import UserError

import torch


def choose_device(name: str) -> torch.device:
    """The device that `name` means; each process gets its own GPU. Raises UserError if there is none, or too few."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name not in ("auto", "cpu") and (not found or found.type != name):
        raise UserError(
            f"params.yaml: device is {name}, but PyTorch finds {found.type if found else 'no accelerator'} here; "
            f"expected {f'{found.type}, ' if found else ''}cpu or auto"
        )
    if name == "cpu" or not found:
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.accelerator.device_count()  # torchrun sets LOCAL_RANK
    if number >= count:
        raise UserError(
            "params.yaml: train.launcher starts more processes than this machine has GPUs; "
            f"expected at most {count} per machine"
        )
    torch.accelerator.set_device_index(number)
    return torch.device(found.type, number)


def hardware_name(device: torch.device) -> str:
    """What the device is called: `NVIDIA H100 80GB HBM3`, or `AMD EPYC, AVX512`."""
    if device.type == "cpu":
        name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
        return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def free_memory(device: torch.device) -> int:
    """Bytes that are free on an accelerator; the machine's whole memory on the CPU, and where PyTorch cannot tell."""
    if device.type != "cpu":
        with suppress(RuntimeError):
            return torch.accelerator.get_memory_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
