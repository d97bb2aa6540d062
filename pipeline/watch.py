"""The page that shows training runs while they train: those of the workspace, and of experiments outside of it."""

import base64
import functools
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.local_port import TRUSTED, host_name
from pipeline.core.packed import read_packed
from pipeline.core.params import LearningRate, Networks, Section
from pipeline.core.paths import PARAMS, from_disk, learning_curve, packed_split, step_curve, train_scores
from pipeline.core.read_params import read_params
from pipeline.core.sections.train import Train, own_params
from pipeline.pages import plots
from pipeline.pages.rendering import render
from pipeline.scores.selection import find_trouble

import pandas as pd
from markupsafe import Markup

WORKSPACE = "workspace"
EXPERIMENTS = Path(".dvc/tmp/exps/run")  # where DVC describes the experiments that run outside of the workspace
REFRESH_S = 3
SHOWN = 3  # of the warnings, the last ones
KEPT = 64  # curves and their plots, which are read and drawn again only if the files have changed
# Replaces what may have changed, so that the reader's place on the page and open tables stay.
SCRIPT = """
async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href);
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const open = [...document.querySelectorAll("details[open]")].map(details => details.id);
      for (const id of ["state", "main"]) document.getElementById(id).replaceWith(page.getElementById(id));
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      document.title = page.title;
    } catch {
      document.getElementById("state").textContent = "No answer from tools/watch.py; below is what it showed last.";
    }
  }
  setTimeout(refresh, REFRESH_MS);
}
setTimeout(refresh, REFRESH_MS);
""".replace("REFRESH_MS", str(1000 * REFRESH_S))
SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


class TrainParams(Section):
    """What the page shows of params.yaml."""

    lr: LearningRate
    networks: Networks
    train: Train


@dataclass(frozen=True, eq=False)
class Watched:
    """The training of a network, in the workspace or in the copy of it that an experiment runs in.

    Both tables are empty until the head is fitted, or without that until the first step.
    """

    run: str  # WORKSPACE, or the experiment's name
    network: str
    folder: Path
    curve: pd.DataFrame
    steps: pd.DataFrame
    changed: float  # in seconds since 1970

    @property
    def is_finished(self) -> bool:
        return "kept" in self.curve

    @property
    def epoch(self) -> float | None:
        """None if there is none yet."""
        return max((table["epoch"].iloc[-1] for table in (self.curve, self.steps) if len(table)), default=None)


def find_watched() -> list[Watched]:
    """All trainings of which there are curves: those in progress first, then the finished ones of the workspace."""
    found = []
    for run, folder in find_runs():
        files = [path for curve in (learning_curve, step_curve) for path in folder.glob(str(curve("*")))]
        for network in sorted({from_disk(path.stem) for path in files}):
            with suppress(FileNotFoundError):  # the results just replace it, or DVC deletes it
                changed = max(path.stat().st_mtime for path in files if from_disk(path.stem) == network)
                watched = read_watched(run, network, folder, changed)
                has_begun = (folder / step_curve(network)).exists()  # else a version wrote it that had no such table
                if has_begun and (run == WORKSPACE or not watched.is_finished):
                    found.append(watched)
    return sorted(found, key=lambda watched: watched.is_finished)


@functools.lru_cache(KEPT)
def read_watched(run: str, network: str, folder: Path, changed: float) -> Watched:
    """The curves of a network as they are since `changed`."""
    curve, steps = (read_growing(folder / of(network)) for of in (learning_curve, step_curve))
    if "validation_calibrated_loss" not in curve:  # there is none yet, or an earlier version wrote it
        curve = pd.DataFrame()
    return Watched(run, network, folder, curve, steps, changed)


def find_runs() -> Iterator[tuple[str, Path]]:
    """The name and folder of the workspace, and of each experiment that DVC runs in a copy of it."""
    yield WORKSPACE, Path()
    for file in sorted(EXPERIMENTS.glob("*/*.run")):
        with suppress(OSError, ValueError, KeyError):  # DVC is just writing or deleting it
            run = json.loads(file.read_text(encoding="utf-8"))
            folder = Path(run["root_dir"], run["dvc_dir"]).parent
            if folder != Path.cwd():
                yield run["name"] or file.stem[:7], folder


def read_growing(path: Path) -> pd.DataFrame:
    """The rows of a table so far; none if it does not exist."""
    with suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8")
        if rows := text[: text.rfind("\n") + 1]:  # training opens the file before it writes the header
            return pd.read_csv(io.StringIO(rows))
    return pd.DataFrame()


def page() -> str:
    """The page, as HTML."""
    watched = find_watched()
    return render(
        "watch.html.jinja",
        trainings=[describe(training) for training in watched],
        running=sum(not training.is_finished for training in watched),
        script=Markup(SCRIPT),
        script_hash=SCRIPT_HASH,
    )


def describe(watched: Watched) -> dict:
    """What the page shows of a training."""
    rows = [{"kept": False, **row} for row in watched.curve.to_dict("records")]
    train = None
    with suppress(UserError):
        params = read_params(TrainParams, watched.folder / PARAMS)
        train = params.train
        if network := params.networks.get(watched.network):  # None: it has been removed from params.yaml
            train = own_params(watched.network, network, params.lr, train)["train"]
    epochs = train.epochs if train else None
    return {
        "run": watched.run,
        "network": watched.network,
        "is_finished": watched.is_finished,
        "kept": kept_epoch(watched),
        "epoch": watched.epoch,
        "fits_head": train is not None and train.head_init == "fitted",
        "epochs": epochs,
        "step": watched.steps["step"].iloc[-1] if len(watched.steps) else 0,
        "changed_s": max(0, time.time() - watched.changed),
        "trouble": list(find_all_trouble(rows, watched.folder, train.key("lr") if train else "lr"))[-SHOWN:],
        "rows": rows,
        "plots": draw(watched, epochs) if watched.epoch is not None else {},
    }


def kept_epoch(watched: Watched) -> int | str | None:
    """What a finished training kept: an epoch, or 0+3 (1:3) for a mean; None if DVC has just deleted its scores."""
    with suppress(UserError, FileNotFoundError):
        return read_json(watched.folder / train_scores(watched.network))["kept_epoch"] if watched.is_finished else None
    return None


def find_all_trouble(rows: list[dict], folder: Path, lr_key: str) -> Iterator[str]:
    """The warnings that training printed; none if the number of classes cannot be read."""
    with suppress(UserError):
        classes = len(read_packed(folder / packed_split("train")).description["classes"])
        for end, row in enumerate(rows, start=1):
            if trouble := find_trouble(rows[:end], classes, lr_key):
                yield f"epoch {row['epoch']}: {trouble}"


@functools.lru_cache(KEPT)
def draw(watched: Watched, epochs: int | None) -> dict[str, Markup]:
    """The plots, by title."""
    curve, steps = watched.curve, watched.steps
    drawn = {kind: plots.progress(kind, curve, steps, epochs) for kind in ("loss", "accuracy")}
    if len(steps):
        drawn["learning rate"] = plots.learning_rate(steps, epochs)
    name = f"{watched.run} {watched.network}"
    return {title: Markup(plots.svg(plot, f"{name} {title}")) for title, plot in drawn.items()}


class Handler(BaseHTTPRequestHandler):
    """Answers GET / with the page. Requests for a host other than this computer are refused."""

    one_at_a_time = threading.Lock()  # Matplotlib's settings are those of the whole process

    def do_GET(self) -> None:
        if host_name(self.headers.get("Host", "")) not in TRUSTED:
            self.send_error(400, "Unknown host")
        elif self.path != "/":
            self.send_error(404)
        else:
            with self.one_at_a_time:
                content = page().encode()
            with suppress(ConnectionError):  # the reader has left
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
