"""Compare the results here with those of another computer, which a verify.json describes."""

import json
from pathlib import Path

from pipeline.core import WORKSPACE
from pipeline.core.errors import UserError, list_some
from pipeline.core.paths import SPLIT_TABLE
from pipeline.runs.fingerprint import count_differing, describe, describe_differing
from pipeline.runs.reading import SEED, Run, read_run
from pipeline.runs.rebuilding import RECORD
from pipeline.scores.scoring import predicted_labels

MAY_DIFFER = ("device", "train.launcher", "prepare.source", "prepare.labels")  # between two computers


def read_record(path: Path) -> dict:
    """Read a verify.json. Raises UserError if it is something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for key in ("commit", "params", "made_with", "outputs", "answers"):
            record[key]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected the {RECORD} that `make verify` writes") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} was not written by `make verify`") from None
    return record


def compare_with(record: dict, path: Path, seed_run: str | None) -> None:
    """Compare the results here with those that a verify.json describes.

    Raises UserError if they cannot be compared, or if more answers differ than between two seeds.
    """
    here = describe()
    require_comparable(here, record, path)
    for key, value in here["made_with"].items():
        if record["made_with"].get(key) != value:
            print(f"{key}: {value} here, {record['made_with'].get(key)} there")
    if here["commit"] != record["commit"]:
        print(f"commit: {here['commit'] or 'none'} here, {record['commit'] or 'none'} there")
    outputs = dict.fromkeys([*here["outputs"], *record["outputs"]])
    differing = [output for output in outputs if here["outputs"].get(output) != record["outputs"].get(output)]
    for output in outputs:
        print(f"{'different' if output in differing else 'same':<12}  {output}")
    if not differing:
        print(f"All {len(outputs)} outputs are the same, byte for byte.")
        return
    differ = {name: count_differing(answers, record["answers"][name]) for name, answers in here["answers"].items()}
    print(f"{len(differing)} of {len(outputs)} outputs differ in their bytes; {describe_differing(differ)}.")
    if any(count["differing"] for count in differ.values()):
        require_within_seeds(differ, seed_run)


def require_comparable(here: dict, record: dict, path: Path) -> None:
    """Raise UserError unless both results are for the same params and photos; the split table shows the latter."""
    keys = [key for key in dict.fromkeys([*here["params"], *record["params"]]) if key not in MAY_DIFFER]
    if changed := [key for key in keys if here["params"].get(key) != record["params"].get(key)]:
        values = [f"{key} is {here['params'].get(key)} here, {record['params'].get(key)} there" for key in changed]
        raise UserError(f"{path} is for different params: {list_some(values)}")
    split = SPLIT_TABLE.as_posix()
    if here["outputs"].get(split) != record["outputs"].get(split):
        raise UserError(f"{path} is for different photos: {split} differs; start from the same archive and corrections")


def require_within_seeds(differ: dict[str, dict[str, int]], seed_run: str | None) -> None:
    """Say whether as many answers differ between two seeds. Raises UserError if fewer do, or if that is not known."""
    if not seed_run:
        raise UserError(
            "some answers differ; to see whether two seeds differ as much, commit the results, run `dvc exp run --name "
            "other-seed -S train.seed=2`, then `git restore .` and `dvc checkout`, and add --seed-run other-seed"
        )
    between = differing_between(read_run(WORKSPACE, "test"), read_run(seed_run, "test"))
    above = [name for name, count in differ.items() if count["differing"] > between[name]]
    seeds = ", ".join(f"{name} {count:,}" for name, count in between.items())
    print(f"Two seeds differ in: {seeds}.")
    if above:
        raise UserError(f"{list_some(above)}: more answers differ than between two seeds")
    print("That is no more than two seeds differ by.")


def differing_between(run: Run, other: Run) -> dict[str, int]:
    """How many answers differ between two seeds, by network and for the ensemble. Raises UserError if they are not."""
    keys = [key for key in run.params | other.params if run.params.get(key) != other.params.get(key)]
    if keys != [SEED] or run.photos["sha256"].tolist() != other.photos["sha256"].tolist():
        raise UserError(
            f"--seed-run {other.name}: expected a run that differs only in {SEED}; it differs in "
            f"{list_some(keys) or 'nothing'}"
        )
    return {
        name: int((predicted_labels(of.probabilities) != predicted_labels(other.answers[name].probabilities)).sum())
        for name, of in run.answers.items()
    }
