"""Rank all experiments by the ensemble's log loss on validation, never by test.

Shows each experiment's validation scores, the epoch that each network kept (0 is the fitted head, 0+6 (1:1) the mean
of it and epoch 6), and the params that differ from HEAD's. Experiments on other validation photos cannot be compared,
so they are ranked separately. Everything is read from git and DVC's cache; nothing is checked out or run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError, list_some
from pipeline.core.process import run_stage


def main() -> None:
    read_arguments(__doc__)

    # Slow imports, so not before: mistakes in the arguments should be reported at once.
    from pipeline.runs.experiments import Experiment, find_experiments
    from pipeline.runs.git import DEEPEN, is_shallow
    from pipeline.runs.ranking import HEADINGS, rank, table

    found, unfinished = find_experiments()
    if not found:
        raise UserError("there are no results yet; run `dvc exp run`")
    base = found[0]  # HEAD, if it has results
    groups: dict[tuple[str, ...], list[Experiment]] = {}
    for experiment in found:
        groups.setdefault(experiment.photos, []).append(experiment)
    for photos, group in groups.items():
        judged_on = f"{len(photos):,} validation photos" if photos else "validation photos that are not in DVC's cache"
        print(f"Ranked by the ensemble's log loss on {judged_on}:")
        print("\n".join([*table([(*HEADINGS, f"params that differ from {base.name}"), *rank(group, base)]), ""]))
    if any(0 in experiment.kept_epochs.values() for experiment in found):
        print("Kept epoch 0 is the fitted head: no training was kept.")
    if any("+" in str(kept) for experiment in found for kept in experiment.kept_epochs.values()):
        print("A kept epoch such as 0+3 (1:3) is a mean of the fitted head and epoch 3, which counts three times.")
    if len(groups) > 1:
        print("Scores on different validation photos cannot be compared.")
    if is_shallow():
        print(f"Experiments of other commits are left out, because this clone is shallow; run {DEEPEN}")
    names: dict[str, list[str]] = {}
    for text in unfinished:
        name, reason = text.split(" ", maxsplit=1)
        names.setdefault(reason, []).append(name)
    for reason, (name, *others) in names.items():
        print(f"Left out: {name} {reason}{f'; the same for {list_some(others)}' if others else ''}")
    print(f"Which differences are more than chance: python tools/compare.py {base.name} EXPERIMENT")


if __name__ == "__main__":
    run_stage(main)
