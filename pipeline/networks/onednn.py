"""Which kernels oneDNN, PyTorch's library for networks on a CPU, uses here."""

import os
import re
import sys
import tempfile

import torch


def bfloat16_kernel() -> str:
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
