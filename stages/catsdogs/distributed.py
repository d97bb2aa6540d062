"""One training in several processes, started by torchrun; started otherwise, it is one process.

Each process sees its share of every batch, and their gradients are averaged, so that a step is that of the whole batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from catsdogs.errors import UserError

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """`rank` is this process's number, from 0; `count` is how many train together. Only rank 0 prints and writes."""

    rank: int
    count: int

    @property
    def first(self) -> bool:
        return self.rank == 0

    def report(self, text: str) -> None:
        if self.first:
            print(text, flush=True)

    def check_agreement(self, value: Any) -> None:
        """Raise UserError unless `value` (of JSON's types) is the same in every process."""
        if self.from_first(value) != value:
            raise UserError(
                f"process {self.rank} has another params.yaml or data/prepared than process 0; bring the same to every "
                "machine"
            )

    def seed_apart(self, seed: int) -> None:
        """Have each process but the first draw numbers of its own from here on."""
        if not self.first:
            torch.manual_seed(seed + 1_000_003 * self.rank)  # within 32 bits: the CPU drops those above

    def share(self, rows: Tensor) -> Tensor:
        """Every `count`-th of `rows`, another share for each process."""
        return rows[self.rank :: self.count]

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """`network` as rank 0 has it, made to average its gradients; on GPUs BatchNorm sees the whole batch."""
        if self.count == 1:
            return network
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            return DistributedDataParallel(network, device_ids=[device.index])
        return DistributedDataParallel(network)

    def same_statistics(self, network: nn.Module) -> None:
        """Give every process the running statistics of rank 0, which are the ones that are saved."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def from_first(self, value: Any) -> Any:
        """The `value` of rank 0, in every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, shares: Tensor) -> Tensor:
        """The rows of all processes, of which each brings every `count`-th one, in their order; all on the CPU."""
        if self.count == 1:
            return shares
        gathered: list = [None] * self.count
        dist.all_gather_object(gathered, shares)
        rows = shares.new_empty(sum(map(len, gathered)), *shares.shape[1:])
        for rank, share in enumerate(gathered):
            rows[rank :: self.count] = share
        return rows


@contextmanager
def all_processes(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes, if torchrun has started this one, and part from them at the end."""
    if not dist.is_torchelastic_launched():
        yield Processes(rank=0, count=1)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # after an error it would wait for the others, who wait for this one
