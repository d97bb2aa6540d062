"""How many CPU cores this process may use."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

OWN_CGROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """The number of CPU cores that this process may run on, within its container's limit (2 for 1.5 CPUs)."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cores = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return max(1, min([cores or 1, *map(math.ceil, _cgroup_limits())]))


def _cgroup_limits() -> Iterator[float]:
    """Yield the limits, in cores, of this process's control groups, version 1 or 2 (only on Linux).

    Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html
    """
    lines = OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):  # the limits of all of them apply; a container may see only the last one
            with suppress(OSError, ValueError):  # no such file or, in version 2, no limit: "max 100000"
                if not controllers:
                    quota, period = map(int, (CGROUPS / folder / "cpu.max").read_text().split())
                    yield quota / period
                elif "cpu" in controllers.split(","):
                    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    quota, period = (int((CGROUPS / "cpu" / folder / name).read_text()) for name in names)
                    if quota > 0:  # -1: no limit
                        yield quota / period
