"""Write folds/dvc.yaml, the stages of cross-validation. Without it, DVC knows nothing of them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.fold_paths import (
    FOLD_MODELS,
    FOLDS_METRICS,
    FOLDS_PIPELINE,
    FOLDS_PLOT,
    FOLDS_PREDICTIONS,
    FOLDS_SCORES,
    fold_predictions,
    fold_scores,
)

ARGUMENTS = re.compile(r"--folds (\d+) --seed (\d+)")  # in the commands of the stages

PIPELINE = """\
# Written by `python tools/folds.py {folds} --seed {seed}`; see docs/folds.md. `dvc repro` alone does not run it.
stages:
  train:
    desc: train a network without one fold of the photos, and predict that fold
    matrix:
      network: [{networks}]
      fold: [{numbers}]
    wdir: ..
    cmd: python stages/fold.py ${{item.network}} ${{item.fold}} {arguments}
    params: [lr, device, precision, threads, train, evaluate, "networks.${{item.network}}"]
    deps:
      - data/prepared/train.safetensors
      - data/prepared/validation.safetensors
      - data/prepared/split.csv
      - data/code/fold.txt
    outs:
      - {models}/${{item.network}}-${{item.fold}}.csv
      - {models}/${{item.network}}-${{item.fold}}.json

  join:
    desc: join the predictions of all folds, combine the networks, and score everything
    wdir: ..
    cmd: python stages/join_folds.py {arguments}
    params: [networks, ensemble]
    deps:
      - data/prepared/split.csv
      - data/code/join_folds.txt
{predictions}
    outs:
      - {joined}
      - {scores}
      - {plot}
    metrics:
      - {metrics}: {{cache: false}}

plots:
  - ../{plot}
"""


def pipeline_text(networks: Sequence[str], folds: int, seed: int) -> str:
    """The content of folds/dvc.yaml."""
    return PIPELINE.format(
        folds=folds,
        seed=seed,
        networks=", ".join(networks),
        numbers=", ".join(map(str, range(1, folds + 1))),
        arguments=f"--folds {folds} --seed {seed}",
        models=FOLD_MODELS,
        predictions="\n".join(f"      - {path}" for path in models_of(networks, folds)),
        joined=FOLDS_PREDICTIONS,
        scores=FOLDS_SCORES,
        plot=FOLDS_PLOT,
        metrics=FOLDS_METRICS,
    )


def models_of(networks: Sequence[str], folds: int) -> Iterator[Path]:
    """The files that the training stages write."""
    for network in networks:
        for fold in range(1, folds + 1):
            yield from (fold_predictions(network, fold), fold_scores(network, fold))


def read_arguments(text: str) -> tuple[int, int]:
    """The number of folds and their seed, from the command of a stage or all of folds/dvc.yaml.

    Raises UserError if they are not there.
    """
    if not (found := ARGUMENTS.search(text)):
        raise UserError(
            f"{FOLDS_PIPELINE} is not what tools/folds.py writes; delete it, and run `python tools/folds.py`"
        )
    return int(found[1]), int(found[2])


def current_folds() -> tuple[int, int] | None:
    """The number of folds and their seed in folds/dvc.yaml; None if there is no such file."""
    return read_arguments(FOLDS_PIPELINE.read_text(encoding="utf-8")) if FOLDS_PIPELINE.exists() else None
