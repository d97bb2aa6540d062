"""Cross-validation: train every network several times, each time without one fold of the photos, and predict that fold.

So every photo of train and validation is predicted once by models that never saw it, and with few photos the accuracy
depends less on one lucky split. Uses the prepared photos; test photos are left alone. The stages are in folds/dvc.yaml,
which this writes and runs with DVC, so only what has changed is run, and after Ctrl-C the same command resumes.
docs/folds.md explains the output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.files import atomic_write
from pipeline.core.fold_paths import FOLD_MODELS, FOLDS_PIPELINE, FOLDS_PLOT, FOLDS_PREDICTIONS, FOLDS_SCORES
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.folds import LEAST_FOLDS
from pipeline.folds.stages import current_folds, models_of, pipeline_text


def read_inputs() -> tuple[list[str], int, int]:
    """The networks, the number of folds and their seed. Raises UserError if one is wrong."""
    folds, seed = current_folds() or (5, 1)
    parser = ArgumentParser(__doc__)
    parser.add_argument("folds", type=int, nargs="?", default=folds, help="how many; default: as before, at first 5")
    parser.add_argument("--seed", type=int, default=seed, help="another one gives other folds; default: as before")
    arguments = parser.parse_args()
    if arguments.folds < LEAST_FOLDS:
        parser.error(
            f"{arguments.folds} folds; expected at least {LEAST_FOLDS}: one held out, one to choose by, one to train on"
        )
    if arguments.seed < 0:
        parser.error(f"--seed is {arguments.seed}; expected 0 or more")
    return list(read_params(Params).networks), arguments.folds, arguments.seed


def main() -> None:
    networks, folds, seed = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.folds.describing import describe
    from pipeline.folds.joining import read_joined
    from pipeline.runs.dvc_command import run_dvc
    from pipeline.scores.scoring import read_scores

    with atomic_write() as write_to:
        write_to(FOLDS_PIPELINE).write_text(pipeline_text(networks, folds, seed), encoding="utf-8")
    try:
        done = run_dvc("repro", "--quiet", str(FOLDS_PIPELINE))
    except KeyboardInterrupt:
        print("\nInterrupted; the same command resumes with the folds that are not done.")
        raise
    if done.returncode:
        sys.exit(done.returncode)
    used = {*models_of(networks, folds)}
    for path in FOLD_MODELS.rglob("*.*"):
        if path not in used:
            path.unlink()  # left over from more folds, or from a removed network
    print("\n".join(["", *describe(read_joined(), read_scores(FOLDS_SCORES)), ""]))
    print(f"{FOLDS_PREDICTIONS}: the probabilities of each photo; {FOLDS_PLOT}: the plots")


if __name__ == "__main__":
    run_stage(main)
