"""Set up a process to run networks: determinism, threads, memory, device and precision."""

import os

from pipeline.core.cores import usable_cores
from pipeline.networks.allocator import keep_freed_memory
from pipeline.networks.devices import choose_device
from pipeline.networks.onednn import bfloat16_kernel

import torch
from torch import nn


def set_up(device: str, precision: str, threads: int | str) -> tuple[torch.device, torch.dtype]:
    """Set up this process to run networks; return what `device` and `precision` in params.yaml mean here.

    `threads` is the number of threads with which PyTorch computes on a CPU, or `auto`.

    Call it before using an accelerator. Raises UserError if this machine has no such device, or more processes than
    devices.
    """
    _make_deterministic()
    _set_threads(threads)
    keep_freed_memory()
    chosen = choose_device(device)
    return chosen, choose_precision(precision, chosen)


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move `network` to `device`, in the memory format in which convolutions are fastest, and return it."""
    return network.to(device).to(memory_format=torch.channels_last)


def _make_deterministic() -> None:
    """Make PyTorch compute the same bits from the same input in every run. Call it before using a GPU.

    On a GPU, PyTorch warns about operations without a deterministic implementation, such as `backward` of
    AdaptiveAvgPool2d with more than one output pixel (VGG, AlexNet). See
    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms also imports torch.compile, in a second
    # Slow, and no code here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]


def _set_threads(threads: int | str) -> None:
    """Set PyTorch's number of threads, which affects the last digits of sums.

    `auto` is PyTorch's own choice (OMP_NUM_THREADS, or one per core). Without that variable it is limited to the usable
    cores, because PyTorch ignores the limits of containers.
    """
    if isinstance(threads, int):
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and usable_cores() < torch.get_num_threads():
        torch.set_num_threads(usable_cores())


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """`float32` or `bfloat16` as given; for `auto`, bfloat16 if it is faster on this hardware.

    Support for bfloat16 alone is not enough: on a CPU with only AVX2 it is several times slower than float32. AMX is
    built for it, and AMD's AVX512-BF16 doubles the rate of float32; Intel's AVX512-BF16 without AMX trains at about the
    same rate and predicts more slowly. oneDNN may also be kept from using these units (ONEDNN_MAX_CPU_ISA, some
    containers), so it is queried. On a GPU, `float32` keeps PyTorch's default, which uses TF32 in convolutions: with
    small batches single kernels are faster in it, but not as fast as a CUDA graph in bfloat16 (docs/gpus.md).
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        elif device.type == "cpu":
            kernel = bfloat16_kernel()
            is_amd = torch.cpu.get_capabilities().get("cpu_name", "").startswith("AMD")
            fast = "amx" in kernel or (kernel.endswith("avx512_core_bf16") and is_amd)
        else:
            fast = False  # not measured on any other accelerator
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, precision)


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` or `float32`."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
