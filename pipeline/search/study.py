"""The state of a search: an Optuna study in .search/journal.log, which survives an interruption."""

import fcntl
import json
import re
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError, list_some
from pipeline.core.tool_paths import SEARCH, SEARCH_SPACE
from pipeline.runs.git import changed_files, find_commit
from pipeline.search.space import KEYS, Range, Space, current_values, in_order, own_values, why_unused

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

JOURNAL = SEARCH / "journal.log"
RANDOM_TRIALS = 5  # before Optuna proposes params by the results so far
INPUTS = ("params.yaml", "dvc.yaml", "dvc.lock", "stages", "pipeline", "requirements", "requirements.txt", "data")
AGAIN = f"or delete {SEARCH}/ to begin another search (finished trials stay as experiments)"

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", module="optuna")  # that parts of it may change


@contextmanager
def only_search() -> Iterator[None]:
    """Raise UserError if another search is running in this project."""
    SEARCH.mkdir(exist_ok=True)
    with (SEARCH / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another search is running in this project; wait for it to finish") from None
        yield


def require_full_history() -> None:
    """Raise UserError in a shallow clone: DVC ends without an error there, but keeps no experiment."""
    command = ["git", "rev-parse", "--is-shallow-repository"]
    if subprocess.run(command, capture_output=True, text=True).stdout.strip() == "true":
        raise UserError("this is a shallow clone, in which DVC keeps no trials; run `git fetch --unshallow` first")


def base_commit() -> str:
    """The commit that all trials start from. Raises UserError if what they depend on has changed since."""
    if not (commit := find_commit().removesuffix("+")):
        raise UserError("there is no commit of git here; expected one, from which the trials start")
    if changed := changed_files("--untracked-files=no", "--", *INPUTS):
        raise UserError(f"{list_some(changed)}: not committed; commit or restore it, because all trials start from it")
    return commit


def require_same_base(study: Study) -> None:
    """Raise UserError if the trials so far started from another commit."""
    if (started := study.user_attrs["search"]["commit"]) != base_commit():
        raise UserError(f"the search in {SEARCH}/ started from commit {started[:7]}; check that out, {AGAIN}")


def open_study(space: Space, current: dict) -> Study:
    """The study of this search, to which the current params are added as its first trial.

    The trial that was running when the search was interrupted runs again. Raises UserError if .search/ holds another
    search, or in a shallow clone.
    """
    require_full_history()
    study = optuna.create_study(
        study_name="search", storage=JournalStorage(JournalFileBackend(str(JOURNAL))), load_if_exists=True
    )
    # Another seed after each interruption, or the first proposals would be repeated.
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=len(study.get_trials()))
    values = {key: dict(found) if isinstance(found, Range) else found for key, found in space.items()}
    if "search" not in study.user_attrs:
        study.set_user_attr("first_number", next_number())
        study.set_user_attr("search", {"space": json.dumps(values), "commit": base_commit()})
    require_same_base(study)
    if study.user_attrs["search"]["space"] != json.dumps(values):
        raise UserError(f"{SEARCH_SPACE} has changed since the search in {SEARCH}/ began; restore it, {AGAIN}")
    if not study.get_trials():
        study.enqueue_trial(current, user_attrs={"is_base": True})
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params, user_attrs={"is_base": is_base(trial)})
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def next_number() -> int:
    """The lowest number that is higher than that of each experiment search-NUMBER, of any commit."""
    command = ["git", "for-each-ref", "--format=%(refname)", "refs/exps"]
    names = subprocess.run(command, capture_output=True, text=True).stdout
    return max(map(int, re.findall(r"/search-(\d+)$", names, re.MULTILINE)), default=-1) + 1


def propose(study: Study, space: Space, params: Params) -> Trial:
    """The next trial, with values for those in `space` that have an effect on a network of `params`."""
    trial, owns = study.ask(), own_values(params)
    networks = [current_values(params, KEYS) | own for own in owns]
    for key in in_order(space):
        if not all(why_unused(key, values, own) for values, own in zip(networks, owns, strict=True)):
            value = _suggest(trial, key, space[key])
            for values, own in zip(networks, owns, strict=True):
                values[key] = own.get(key, value)
    return trial


def _suggest(trial: Trial, key: str, values: Range | list[Any]) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(key, values)
    if isinstance(values.low, int):
        return trial.suggest_int(key, values.low, int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def name_of(study: Study, number: int) -> str:
    """The name of a trial, which is also that of its experiment."""
    return f"search-{study.user_attrs['first_number'] + number}"


def finished_trials(study: Study) -> list[FrozenTrial]:
    """All trials that completed, were pruned or failed, but not the interrupted ones; the base is the first."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.is_finished() and "outcome" in trial.user_attrs]


def is_base(trial: Trial | FrozenTrial) -> bool:
    """Whether this is the trial with the current params."""
    return trial.user_attrs.get("is_base", False)
