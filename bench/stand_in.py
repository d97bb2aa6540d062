"""A no-op stub for a stage: it only writes new content to each output of that stage.

Copied over the scripts in stages/, it shows what DVC itself does and how long that takes.
"""

import sys
import time
from pathlib import Path

import yaml

stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"].values()
[stage] = [stage for stage in stages if stage["cmd"].split()[1:] == sys.argv]
for out in [*stage["outs"], *stage.get("metrics", [])]:
    path = Path(out if isinstance(out, str) else next(iter(out)))
    if not path.suffix:  # a folder
        path = path / "content.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"number": {time.time_ns()}}}')
