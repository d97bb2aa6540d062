"""Search for params with a lower validation loss, among those in search.yaml; Optuna proposes them.

Each trial trains all networks on the prepared photos and is kept as a DVC experiment: search-0 with the current params,
search-1 and so on with others. It is judged by the calibrated validation loss, by which `train` chooses what it keeps
(the mean of the networks), and stopped early if it is worse than most after the same epoch. Test photos are not used.
The workspace stays as it is. After Ctrl-C the same command resumes. Writes .search/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import math
import time

from pipeline.core import SPLITS
from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.paths import packed_split
from pipeline.core.process import extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_results
from pipeline.search.space import Space, current_values, find_fixed, find_unused, read_space


def read_inputs() -> tuple[int, float, Params, Space]:
    """The number of trials, the seconds, the params, and what to vary. Raises UserError if one is wrong."""
    parser = ArgumentParser(__doc__)
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--trials", type=int, default=20, help="finished ones, also those before Ctrl-C; default: 20")
    limit.add_argument("--minutes", type=float, help="start no trial that would probably end after these minutes")
    arguments = parser.parse_args()
    trials, seconds = arguments.trials, math.inf
    if arguments.minutes is not None:
        trials, seconds = sys.maxsize, 60 * arguments.minutes
    if not (trials > 0 and seconds > 0):
        parser.error("--trials and --minutes must be above 0")
    params = read_params(Params)
    space = read_space(params)
    require_results(*map(packed_split, SPLITS))
    return trials, seconds, params, space


def main() -> None:
    trials, seconds, params, space = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    with extra_packages("search"):
        import optuna  # noqa: F401

    from pipeline.search.results import report
    from pipeline.search.study import only_search, open_study
    from pipeline.search.trials import search

    with only_search():
        study = open_study(space, current_values(params, space))
        for unused in find_unused(space, params):
            print(f"note: {unused}, so it does not vary")
        for fixed in find_fixed(space, params):
            print(f"note: {fixed}")
        try:
            search(study, space, params, trials, time.monotonic() + seconds)
        except KeyboardInterrupt:
            print("\n".join(["", *report(study), "Interrupted; the same command resumes the search."]))
            raise
        print("\n".join(["", *report(study)]))


if __name__ == "__main__":
    run_stage(main)
