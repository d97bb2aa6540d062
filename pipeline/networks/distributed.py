"""Train in several processes started by torchrun, or in one process without it.

Each process gets its shard of every batch, and gradients are averaged, so each step covers the whole batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import UserError

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """`rank` is this process's number, from 0, of `count` that train together. Only rank 0 prints and writes files."""

    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def report(self, text: str) -> None:
        if self.is_first:
            print(text, flush=True)

    def check_agreement(self, value: Any) -> None:
        """Raise UserError unless `value` (any JSON value) is the same in every process."""
        if self.broadcast(value) != value:
            raise UserError(
                f"params.yaml or data/prepared of process {self.rank} differs from process 0's; copy the same files to "
                "every machine"
            )

    def seed(self, seed: int) -> None:
        """Reseed every process except the first, so that each has its own random numbers."""
        if not self.is_first:
            torch.manual_seed(seed + 1_000_003 * self.rank)  # differs in the low 32 bits; the CPU ignores the others

    def shard(self, rows: Tensor) -> Tensor:
        """This process's shard of `rows`: every `count`-th one."""
        return rows[self.rank :: self.count]

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wrap `network` to use rank 0's weights and average gradients; on GPUs, BatchNorm sees the whole batch."""
        if self.count == 1:
            return network
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            return DistributedDataParallel(network, device_ids=[device.index])
        return DistributedDataParallel(network)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copy rank 0's BatchNorm statistics, which are the ones saved, to every process."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's `value` in every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def all_gather(self, shards: Tensor) -> Tensor:
        """Undo `shard`: return the rows of all processes in their original order. All tensors are on the CPU."""
        if self.count == 1:
            return shards
        gathered: list = [None] * self.count
        dist.all_gather_object(gathered, shards)
        rows = shards.new_empty(sum(map(len, gathered)), *shards.shape[1:])
        for rank, shard in enumerate(gathered):
            rows[rank :: self.count] = shard
        return rows


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the other processes if torchrun started this one."""
    if not dist.is_torchelastic_launched():
        yield Processes(rank=0, count=1)
        return
    dist.init_process_group(dist.get_default_backend_for_device(device))
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # not after an error: it would wait for the others, which wait for this process
