"""Rebuild every result in a scratch folder from the same photos, params and code, and compare it byte for byte.

Run it after `dvc repro`. It writes verify.json, for others to compare their results with, and otherwise only to
.verify/. If everything is the same it deletes that folder, otherwise it exits with status 1.

With --against verify.json nothing is rebuilt: the results here are compared with those that the file describes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import filecmp
import json
import shutil

from pipeline.core import WORKSPACE
from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import weights_file
from pipeline.core.paths import CORRECTIONS, PARAMS, PIPELINE, SPLIT_TABLE
from pipeline.core.process import check_first, run_stage
from pipeline.core.read_params import read_params


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with the verify.json of another computer instead"
    )
    parser.add_argument(
        "--seed-run",
        metavar="RUN",
        help="with --against: a run (revision, tag or experiment) that differs only in train.seed; more answers may "
        "differ from the other computer's only if two seeds differ as much",
    )
    arguments = parser.parse_args()
    if arguments.seed_run and not arguments.against:
        parser.error("--seed-run needs --against")
    return arguments


if __name__ == "__main__":
    check_first(read_arguments)

from pipeline.runs.dvc_command import require_up_to_date, run_dvc
from pipeline.runs.fingerprint import count_differing, describe, outputs, read_answers
from pipeline.runs.reading import SEED, Run, read_run
from pipeline.scores.scoring import ENSEMBLE, predicted_labels

import yaml

SCRATCH = Path(".verify")
RECORD = Path("verify.json")
MAY_DIFFER = ("device", "train.launcher", "prepare.source", "prepare.labels")  # between two computers


def main() -> None:
    arguments = read_arguments()
    if arguments.against:
        require_up_to_date()
        compare_with(read_record(arguments.against), arguments.against, arguments.seed_run)
    else:
        rebuild_and_compare()


# ---- here: rebuild, and describe the results ----


def rebuild_and_compare() -> None:
    """Rebuild all results, say which differ, and write verify.json. Raises UserError if some differ."""
    require_source()
    require_up_to_date()
    copy_pipeline()
    for arguments in (
        ["init", "--quiet", "--no-scm"],
        ["config", "core.analytics", "false"],
        ["config", "core.check_update", "false"],
        ["config", "cache.type", "hardlink,copy"],
        ["repro", "--force"],  # even if a shared cache has the results
    ):
        if run_dvc(*arguments, cwd=SCRATCH).returncode != 0:
            raise UserError("the results could not be rebuilt; see the error above")

    findings = {path: compare(path) for path in outputs(SCRATCH)}
    print("\n" + "\n".join(f"{finding:<12}  {path}" for path, finding in findings.items()))
    rebuilt, differ = read_answers(SCRATCH), {}
    for name, answers in read_answers(Path()).items():
        differ[name] = count_differing(answers, rebuilt[name])
    record = describe() | {
        "rebuilt": {path.as_posix(): finding for path, finding in findings.items()},
        "differing_answers": differ,
    }
    with atomic_write() as write_to:
        write_json(write_to(RECORD), record)
    if differing := [path for path, finding in findings.items() if finding != "same"]:
        raise UserError(
            f"{len(differing)} of {len(findings)} outputs differ, and {describe_differing(differ)}; the rebuilt ones "
            f"are in {SCRATCH}/"
        )
    print(f"All {len(findings)} outputs are the same, byte for byte. Others can compare theirs with {RECORD}.")
    shutil.rmtree(SCRATCH)


def describe_differing(differ: dict[str, dict[str, int]]) -> str:
    """`resnet18 classifies 3 of 4,500 test photos differently, the ensemble 1`, or `every answer is the same`."""
    counts = {name: count["differing"] for name, count in differ.items() if count["differing"]}
    if not counts:
        return "every answer is the same"
    [photos] = {count["photos"] for count in differ.values()}
    names = ["the ensemble" if name == ENSEMBLE else name for name in counts]
    first, *others = zip(names, counts.values(), strict=True)
    texts = [f"{first[0]} classifies {first[1]:,} of {photos:,} test photos differently"]
    return ", ".join([*texts, *(f"{name} {count:,}" for name, count in others)])


# ---- another computer: compare ----


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
        raise UserError(f"{path} is for other params: {list_some(values)}")
    split = SPLIT_TABLE.as_posix()
    if here["outputs"].get(split) != record["outputs"].get(split):
        raise UserError(f"{path} is for other photos: {split} differs; start from the same archive and corrections")


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


# ---- the project ----


def require_source() -> None:
    """Raise UserError unless the photos exist."""
    source = read_params(Params).prepare.source
    if not Path(source).exists():
        raise UserError(f"{source}: no such file or folder; the results can only be rebuilt from these photos")


def copy_pipeline() -> None:
    """Copy the pipeline and its params, but no results, to SCRATCH; photos and weights are read in place.

    Their paths become absolute, but links are not resolved, because the name of an archive or of weights matters.
    """
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for folder in ("stages", "pipeline", "requirements"):
        shutil.copytree(folder, SCRATCH / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (PIPELINE, "requirements.txt"):
        shutil.copy(file, SCRATCH)
    (SCRATCH / "data").mkdir()
    shutil.copy(CORRECTIONS, SCRATCH / "data")
    params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    for key in ("source", "labels"):
        params["prepare"][key] = str(Path(params["prepare"][key]).absolute())
    for network in params["networks"].values():
        if file := weights_file(network["weights"]):
            network["weights"] = str(file.absolute())
    (SCRATCH / PARAMS).write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def compare(path: Path) -> str:
    """`same`, `different`, `only here` or `only rebuilt`."""
    original, rebuilt = path, SCRATCH / path
    if not (original.exists() and rebuilt.exists()):
        return "only rebuilt" if rebuilt.exists() else "only here"
    return "same" if filecmp.cmp(original, rebuilt, shallow=False) else "different"


if __name__ == "__main__":
    run_stage(main)
