"""Record what code each stage runs, so that DVC reruns a stage only if its own code has changed.

Reads stages/, pipeline/ and the requirements without importing them; writes data/code/STAGE.txt for each script: a hash
of each module that it uses, and the version of each package. The other stages depend on these files. Comments,
docstrings and formatting do not change a hash.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.code import describe
from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write
from pipeline.core.paths import code_text
from pipeline.core.process import run_stage


def main() -> None:
    read_arguments(__doc__)
    this = Path(__file__).resolve()
    scripts = [script for script in sorted(this.parent.glob("*.py")) if script != this]
    with atomic_write() as write_to:
        for script in scripts:
            write_to(code_text(script.stem)).write_text(describe(script), encoding="utf-8")


if __name__ == "__main__":
    run_stage(main)
