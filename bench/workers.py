"""Find the best number of loader workers on this machine: too few leave cores idle, too many compete for them.

Usage, from a folder with params.yaml and photos/train/CLASS/: python workers.py
Prints the photos per second with each number of workers as JSON: {"2": 512.3, "4": 530.1}. The time includes starting
the workers, because the alternatives start them in every epoch.
"""

import json
import os
import time
from pathlib import Path

from notebook import make_dataset

import yaml
from torch.utils.data import DataLoader, Subset

PHOTOS_PER_CORE = 200


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    dataset, cores = make_dataset("train", params["prepare"]["image_size"]), os.cpu_count() or 1
    photos = Subset(dataset, range(0, len(dataset), max(1, len(dataset) // (PHOTOS_PER_CORE * cores))))
    rates = {}
    for workers in sorted({max(1, cores // 2), cores, 2 * cores}):
        start = time.perf_counter()
        for _ in DataLoader(photos, params["train"]["batch_size"], num_workers=workers):
            pass
        rates[workers] = round(len(photos) / (time.perf_counter() - start), 1)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
