"""How networks run: the device, the precision, and determinism."""

import ctypes
import os
import re
import sys
import tempfile
from contextlib import suppress

from pipeline.core.cores import usable_cores
from pipeline.core.errors import UserError
from pipeline.core.params import AUTO

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)


def set_up(device: str, precision: str, threads: int | str) -> tuple[torch.device, torch.dtype]:
    """Set up this process to run networks; return what `device` and `precision` in params.yaml mean here.

    `threads` is the number of threads with which PyTorch computes on a CPU, or `auto`.

    Call it before using an accelerator. Raises UserError if this machine has no such device, or more processes than
    devices.
    """
    _make_deterministic()
    _set_threads(threads)
    _keep_freed_memory()
    chosen = _choose_device(device)
    return chosen, choose_precision(precision, chosen)


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
    if threads != AUTO:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and usable_cores() < torch.get_num_threads():
        torch.set_num_threads(usable_cores())


def _keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones; do nothing with any other C library.

    By default glibc returns large blocks to the system, which zeroes every page before handing it out again: that takes
    a sixth of a training step on a CPU. Keeping the blocks makes the process about a third larger.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _choose_device(name: str) -> torch.device:
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
            kernel = _bfloat16_kernel()
            is_amd = torch.cpu.get_capabilities().get("cpu_name", "").startswith("AMD")
            fast = "amx" in kernel or (kernel.endswith("avx512_core_bf16") and is_amd)
        else:
            fast = False  # not measured on any other accelerator
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, precision)


def _bfloat16_kernel() -> str:
    """The kernel with which oneDNN multiplies bfloat16 matrices here, such as `brg_matmul:avx512_core_bf16`, or "".

    The name appears only in oneDNN's verbose output, written directly to stdout:
    https://uxlfoundation.github.io/oneDNN/dev_guide_verbose.html
    """
    capabilities = torch.cpu.get_capabilities()
    if not torch.backends.mkldnn.is_available() or not (
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    ):
        return ""
    matrix = torch.zeros(256, 256, dtype=torch.bfloat16)
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                torch.mm(matrix, matrix)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        captured.seek(0)
        lines = captured.read().decode()
    found = re.search(r"exec,cpu,matmul,([^,]+),", lines)
    return found[1] if found else ""


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` or `float32`."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
