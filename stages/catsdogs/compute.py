"""Where and how precisely a network runs, and running it over a split."""

import ctypes
import os
import re
import sys
import tempfile

from catsdogs.dataset import PackedSplit
from catsdogs.errors import UserError

import torch
from torch import Tensor, nn
from tqdm import tqdm

INFERENCE_BATCH_SIZE = 64
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def make_deterministic() -> None:
    """Have PyTorch compute the same bits from the same input, run after run; to be called before a GPU is used.

    Warns, on a GPU, of an operation that has no deterministic form: `backward` of AdaptiveAvgPool2d to more than one
    pixel (VGG, AlexNet) is one. (https://docs.pytorch.org/docs/stable/notes/randomness.html)
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a safeguard that costs time; nothing here reads any


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones; where there is another C library, do nothing.

    It hands large blocks back to the system, which clears every page before it gives it out again: on a CPU a sixth of
    a training step. A process that keeps them is about a third larger.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def choose_device() -> torch.device:
    """The GPU where there is one, else the CPU. Of several processes each has its own; UserError if one has none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()  # the first is set by torchrun
    if number >= count:
        raise UserError(
            f"params.yaml: launcher starts more processes than there are GPUs here; expected at most {count}"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """`float32` or `bfloat16` as asked; for `auto`, bfloat16 where the hardware multiplies it faster.

    That a CPU can multiply bfloat16 says little: with AVX2 alone it is several times slower than float32. AMX is made
    for it, and AMD's AVX512-BF16 doubles the rate of float32; Intel's alone trains at about the same rate, and predicts
    slower. And oneDNN may not use these units everywhere (ONEDNN_MAX_CPU_ISA, some containers), so it is
    asked. On a GPU `float32` leaves PyTorch's default, which multiplies in TF32 within convolutions.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            kernel = _bfloat16_kernel()
            is_amd = torch.cpu.get_capabilities().get("cpu_name", "").startswith("AMD")
            fast = "amx" in kernel or (kernel.endswith("avx512_core_bf16") and is_amd)
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, precision)


def _bfloat16_kernel() -> str:
    """What oneDNN multiplies bfloat16 matrices with here, `brg_matmul:avx512_core_bf16` for example; `` if it does not.

    Only its verbose output tells, which it writes to stdout itself:
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


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@torch.inference_mode()
def predict_logits(network: nn.Module, packed: PackedSplit, dtype: torch.dtype, title: str) -> Tensor:
    """Logits of every photo, float32 [N, 2] on the CPU; leaves the network in eval mode; `title` heads its bar."""
    network.eval()
    logits = []
    with tqdm(total=len(packed), desc=title, unit=" images", disable=None, leave=False) as bar:
        for rows in torch.arange(len(packed), device=packed.device).split(INFERENCE_BATCH_SIZE):
            with autocast(packed.device, dtype):
                logits.append(network(packed.images(rows)).float())
            bar.update(len(rows))
    return torch.cat(logits).cpu()
