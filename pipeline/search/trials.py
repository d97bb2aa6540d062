"""Run a trial: train all networks with other params, as a DVC experiment outside the workspace."""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import time
from contextlib import suppress
from typing import Any

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.params import as_written
from pipeline.core.paths import train_scores, train_stage
from pipeline.core.tool_paths import SEARCH
from pipeline.runs.dvc_command import start_dvc
from pipeline.runs.reading import open_run
from pipeline.search.space import Space
from pipeline.search.study import finished_trials, is_base, name_of, propose, require_same_base

from optuna import Study, Trial
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

EPOCH = re.compile(r"(\S+) epoch (\d+)/(\d+): .*\((\S+) calibrated\)")  # of a line that train prints
FAILURES = 3  # in a row, after which the search ends
ENOUGH = 4  # trials to compare with, before one is pruned
STOPPING_S = 20  # to end after SIGINT
DIGITS = 3  # significant ones, of a proposed number


def search(study: Study, space: Space, params: Params, trials: int, deadline: float) -> None:
    """Run trials until that many have finished besides the base, or the next would probably end after `deadline`.

    The base is the trial with `params`, those in params.yaml.
    Raises UserError if the base fails, or too many others in a row, or if what the trials start from changes.
    """
    # Trials are stopped by SIGINT. They would ignore it if this process had been started to do so, as by `... &`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seconds: list[float] = []
    while len(finished_trials(study)) <= trials:
        start = time.monotonic()
        if seconds and start + statistics.fmean(seconds) > deadline:
            break
        require_same_base(study)
        trial = propose(study, space, params)
        name = name_of(study, trial.number)
        print(f"{name}: {'the current params' if is_base(trial) else describe(trial)}", end=" ", flush=True)
        run_trial(study, trial, list(params.networks))
        seconds.append(time.monotonic() - start)
        print(f"-> {finished_trials(study)[-1].user_attrs['outcome']}, {seconds[-1]:.0f} s", flush=True)
        last = finished_trials(study)[-FAILURES:]
        if len(last) == FAILURES and all(trial.state == TrialState.FAIL for trial in last):
            raise UserError(f"{FAILURES} trials in a row failed; {SEARCH / name}.log has the output of the last one")


def run_trial(study: Study, trial: Trial, networks: list[str]) -> None:
    """Run a trial and tell the study its loss, or that it was pruned or failed. Raises UserError if the base fails.

    The loss is that by which `train` chooses what it keeps, the calibrated one on validation: the mean of the networks.
    """
    name = name_of(study, trial.number)
    state, outcome, loss = TrialState.FAIL, train(study, trial, name, networks), None
    if outcome.startswith("pruned"):
        state = TrialState.PRUNED
    elif not outcome:
        loss = read_loss(name, networks)
        outcome = f"{loss:.4f}"
        if math.isfinite(loss):
            state = TrialState.COMPLETE
    if is_base(trial) and state == TrialState.FAIL:
        print()
        raise UserError(
            f"{name}, the current params, {outcome}; {SEARCH / name}.log has its output; run `dvc repro` and commit "
            "its results first"
        )
    trial.set_user_attr("outcome", outcome)
    study.tell(trial, loss if state == TrialState.COMPLETE else None, state)


def train(study: Study, trial: Trial, name: str, networks: list[str]) -> str:
    """Train the networks; empty if that succeeds, else how the trial ended. DVC's output goes to .search/NAME.log."""
    changes = {} if is_base(trial) else params_of(trial)
    log = SEARCH / f"{name}.log"
    command = ["exp", "run", "--temp", "--allow-missing", "--name", name]  # missing: the photos, if git ignores them
    command += [f"--set-param={key}={as_written(value)}" for key, value in changes.items()]
    command += map(train_stage, networks)
    process = start_dvc(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    with log.open("w", encoding="utf-8") as file:
        try:
            for line in process.stdout or ():
                print(line, end="", file=file, flush=True)
                if (epoch := EPOCH.match(line)) and is_hopeless(study, trial, networks, *epoch.groups()):
                    return f"pruned after epoch {epoch[2]} of {epoch[1]}, at {epoch[4]}"
            if process.wait() == 0:
                return ""
        finally:
            stop(process)
    return f"failed: {reason(log.read_text(encoding='utf-8'))}"


def describe(trial: Trial) -> str:
    """`lr 0.0002, train.crop_scale 0.3`."""
    return ", ".join(f"{key} {as_written(value)}" for key, value in params_of(trial).items())


def params_of(trial: Trial | FrozenTrial) -> dict[str, Any]:
    """The params that a trial runs with: the current ones, or the proposed ones, those in a range with few digits."""
    params = dict(trial.params)
    for key, distribution in trial.distributions.items():
        if isinstance(distribution, FloatDistribution) and not is_base(trial):
            params[key] = float(f"{params[key]:.{DIGITS}g}")
    return params


def is_hopeless(
    study: Study, trial: Trial, networks: list[str], network: str, epoch: str, epochs: str, loss: str
) -> bool:
    """Report a network's loss after an epoch, and say whether it is above the median of the completed trials.

    Never in the first half of the epochs, when the learning rate is high. Trials with other epochs are not compared.
    """
    value = math.inf if math.isnan(float(loss)) else float(loss)
    step = int(epoch) * len(networks) + networks.index(network)  # networks may have different numbers of epochs
    trial.report(value, step)
    others = [
        other.intermediate_values[step]
        for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if step in other.intermediate_values and other.params.get("train.epochs") == trial.params.get("train.epochs")
    ]
    in_second_half = 2 * int(epoch) >= int(epochs) and epoch != epochs  # the last epoch is worth waiting for
    return in_second_half and len(others) >= ENOUGH and value > statistics.median(others)


def stop(process: subprocess.Popen) -> None:
    """End `dvc` and its stage, if they are still running: as by Ctrl-C, so that DVC removes its copy of the project."""
    with suppress(ProcessLookupError):
        try:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.communicate(timeout=STOPPING_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def reason(output: str) -> str:
    """Why a trial failed, in one line: the stage's own error, or else DVC's."""
    lines = output.splitlines()
    errors = [line for start in ("error: ", "ERROR: ") for line in lines if line.startswith(start)]
    return (errors or lines or ["dvc printed nothing"])[0].removeprefix("error: ").removeprefix("ERROR: ")


def read_loss(name: str, networks: list[str]) -> float:
    """The mean of the networks' calibrated validation losses in an experiment."""
    _, read = open_run(name)
    scores = [json.loads(read(train_scores(network))) for network in networks]
    return statistics.fmean(network["validation_calibrated_loss"] for network in scores)
