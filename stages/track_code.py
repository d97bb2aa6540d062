"""Record what code each stage runs, so that DVC reruns a stage only if its own code has changed.

Reads stages/, pipeline/ and the requirements without importing them; writes data/code/STAGE.txt for each script: a hash
of each module that it uses, and the version of each package. The other stages depend on these files. Comments,
docstrings and formatting do not change a hash.

First it checks that the photos and the table of labels exist. Without them, DVC would delete what `prepare` wrote, not
run it, and print only "[Errno 2] No such file or directory".
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.code import describe
from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write
from pipeline.core.params import Section
from pipeline.core.paths import code_text
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import is_in_lock
from pipeline.core.sections.prepare import Prepare
from pipeline.core.sources import describe_missing, describe_missing_labels


class Params(Section):
    """What this stage reads of params.yaml."""

    prepare: Prepare


def main() -> None:
    read_arguments(__doc__)
    require_sources(read_params(Params).prepare)
    this = Path(__file__).resolve()
    scripts = [script for script in sorted(this.parent.glob("*.py")) if script != this]
    with atomic_write() as write_to:
        for script in scripts:
            write_to(code_text(script.stem)).write_text(describe(script), encoding="utf-8")


def require_sources(prepare: Prepare) -> None:
    """Raise UserError if prepare.source or prepare.labels does not exist.

    What an earlier run has read may be missing: `dvc repro --allow-missing` does not need it.
    """
    for path, describe_it in ((prepare.source, describe_missing), (prepare.labels, describe_missing_labels)):
        if not Path(path).exists() and not is_in_lock(Path(path)):
            raise UserError(describe_it(Path(path)))


if __name__ == "__main__":
    run_stage(main)
