"""Rebuild every result in a scratch folder from the same photos, params and code, and compare it byte for byte.

Run it after `dvc repro`. It writes verify.json, for others to compare their results with, and otherwise only to
.verify/. If everything is the same it deletes that folder, otherwise it exits with status 1.

With --against verify.json nothing is rebuilt: the results here are compared with those that the file describes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse

from pipeline.core.command_line import ArgumentParser
from pipeline.core.process import run_stage


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with the verify.json of another computer instead"
    )
    parser.add_argument(
        "--seed-run",
        metavar="RUN",
        help="with --against: a run (revision, tag or experiment) that differs only in train.seed; it is an error if "
        "more answers differ from the other computer's than between the two seeds",
    )
    arguments = parser.parse_args()
    if arguments.seed_run and not arguments.against:
        parser.error("--seed-run needs --against")
    return arguments


def main() -> None:
    arguments = read_arguments()

    # Slow imports, so not before: mistakes in the arguments should be reported at once.
    from pipeline.runs.dvc_command import require_up_to_date
    from pipeline.runs.other_computer import compare_with, read_record
    from pipeline.runs.rebuilding import rebuild_and_compare

    if arguments.against:
        require_up_to_date()
        compare_with(read_record(arguments.against), arguments.against, arguments.seed_run)
    else:
        rebuild_and_compare()


if __name__ == "__main__":
    run_stage(main)
