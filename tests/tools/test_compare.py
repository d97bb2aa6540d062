"""tools/compare.py, on made-up predictions whose statistics are known; and the statistics themselves."""

import hashlib
import html
import io
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compare
from pipeline.core.errors import UserError
from pipeline.core.parse_yaml import parse_yaml
from pipeline.runs import differences, reading
from run import copy_pipeline
from tests.support.photos import kaggle_files
from tests.support.projects import Repository, error_line, stand_in_repository

import numpy as np
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.numpy import save_file
from scipy.stats import binom, binomtest, ttest_ind, ttest_rel
from sklearn.metrics import log_loss

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

PAGE = "metrics/compare.html"
PHOTOS = 200  # in validation, and as many in test
CLASSES = ["cat", "dog"]
NETWORKS = ("resnet18", "resnet34")
SPLIT_TABLE, PREDICTIONS = "data/prepared/split.csv", "metrics/predictions/networks.csv"
ENSEMBLE_PREDICTIONS = "metrics/predictions/ensemble.csv"
MODEL = "models/networks/resnet18.safetensors"
CODE = "data/code/evaluate.txt"
HEAD_WRONG = {"resnet18": range(20), "resnet34": range(10, 30)}  # the photos that HEAD gets wrong in each split
# Of resnet18's mistakes this corrects six and adds four; resnet34's answers are the same.
SLOWER_WRONG = {"resnet18": [*range(6, 20), 50, 51, 52, 53], "resnet34": range(10, 30)}
BETTER_WRONG = {"resnet18": range(4), "resnet34": [*range(10, 30), 60]}
EVEN_WRONG = {"resnet18": [*range(4, 20), 70, 71, 72, 73], "resnet34": range(10, 30)}
SEEDS_WRONG = [HEAD_WRONG] + [
    {"resnet18": [*range(19), *others], "resnet34": range(10, 30)} for others in ([40], [41, 42])
]
BETTER_SEEDS_WRONG = [
    {name: [*of, *others] for name, of in BETTER_WRONG.items()} for others in ([], [40, 41, 44], [43])
]
UGLY = "<img src=x onerror=alert(1)>&\"'.jpg"


def margins(wrong: Iterable[int], scale: float = 1.0) -> np.ndarray:
    """By photo: the logit of its class minus that of the other, negative for `wrong`."""
    sizes = scale * (1 + np.arange(PHOTOS) % 7 / 10)
    return np.where(np.isin(np.arange(PHOTOS), list(wrong)), -sizes, sizes).round(6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def results(
    wrong: Mapping[str, Iterable[int]],
    test: Mapping[str, Iterable[int]] | None = None,
    scale: float = 1.0,
    salt: str = "",
    relabelled: int = 0,
    classes: Sequence[str] = CLASSES,
) -> dict[str, bytes]:
    """The tables that the stages write, for networks that get these photos `wrong`, in `test` perhaps others.

    With `salt` the second half of the photos are others; `relabelled` is a number of photos.
    """
    photos, logits, combined = [], [], []
    for split in ("validation", "test"):
        is_dog = np.arange(PHOTOS) % 2 == 1
        is_dog[:relabelled] = ~is_dog[:relabelled]
        names = [f"{split}{number}{salt if number >= PHOTOS // 2 else ''}.jpg" for number in range(PHOTOS)]
        names[1] = f"{split}{UGLY}"
        table = pd.DataFrame({"photo": names, "label": np.array(classes)[is_dog.astype(int)], "split": split})
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
        photos.append(table.assign(sha256=hashes))
        of_split = test if test and split == "test" else wrong
        margin = {name: np.where(is_dog, 1, -1) * margins(of, scale) for name, of in of_split.items()}
        for name, of_dog in margin.items():
            columns = {f"logit_{classes[0]}": 0.0, f"logit_{classes[1]}": of_dog}
            logits.append(table[["split", "photo", "label"]].assign(network=name, **columns))
        dog = sigmoid(sum(margin.values()) / len(margin))
        columns = {f"probability_{classes[0]}": 1 - dog, f"probability_{classes[1]}": dog}
        combined.append(table[["photo", "label", "split"]].assign(**columns))
    return {
        SPLIT_TABLE: pd.concat(photos).to_csv(index=False).encode(),
        PREDICTIONS: pd.concat(logits).to_csv(index=False).encode(),
        ENSEMBLE_PREDICTIONS: pd.concat(combined).to_csv(index=False, float_format="%.9f").encode(),
    }


def write(repository: Repository, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = repository.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link into the cache
        path.write_bytes(content)


def change(params: dict, changes: Mapping[str, object]) -> None:
    """Set params by their dotted keys."""
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = params
        for name in sections:
            section = section[name]
        section[last] = value


def lock(
    repository: Repository, files: Mapping[str, bytes], cached: bool = True, spoil: Callable[[dict], object] = id
) -> None:
    """Write dvc.lock and, if `cached`, DVC's cache as if the stages had run with the project's params.

    `spoil` then changes what dvc.lock says of the stages.
    """
    path = repository.root / "dvc.lock"
    stages = parse_yaml(path.read_text())["stages"]
    networks = repository.params["networks"]
    for name in networks:
        stages.setdefault(f"train_{name}", json.loads(json.dumps(stages["train_resnet18"]).replace("resnet18", name)))
    entries = [entry for stage in stages.values() for entry in (*stage["outs"], *stage["deps"])]
    for name, content in files.items():
        md5 = hashlib.md5(content).hexdigest()
        for entry in entries:
            if entry["path"] == name:
                entry |= {"md5": md5, "size": len(content)}
        if cached:
            object_path = repository.root / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
            object_path.parent.mkdir(parents=True, exist_ok=True)
            object_path.write_bytes(content)
    for stage in stages.values():
        for key in stage.get("params", {}).get("params.yaml", {}):
            section, _, network = key.partition(".")
            value = repository.params[section]
            stage["params"]["params.yaml"][key] = value[network] if network and network in value else value
    evaluate_models(stages, networks)
    spoil(stages)
    path.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


def evaluate_models(stages: dict, networks: Iterable[str]) -> None:
    """Make dvc.lock say that `evaluate` ran with the models of `networks` that the training stages wrote."""
    written = reading.written_by({name: stages[f"train_{name}"] for name in networks})
    for dependency in stages["evaluate"]["deps"]:
        if dependency["path"] == "models/networks":
            dependency["md5"] = reading.hash_of_folder("models/networks", written)


def retrain(stages: dict) -> None:
    """Make dvc.lock say that resnet18's model is another one."""
    output_of(stages["train_resnet18"], MODEL).update(md5="0" * 32)
    evaluate_models(stages, ("resnet18", "resnet34"))


def output_of(stage: dict, path: str) -> dict:
    """What dvc.lock says of an output of a stage."""
    [found] = [out for out in stage["outs"] if out["path"] == path]
    return found


def store(
    repository: Repository,
    name: str,
    files: Mapping[str, bytes],
    params: Mapping[str, object] | None = None,
    **options: Any,
) -> None:
    """Tag a commit with these results, and leave the repository as it was; `options` are those of `lock`."""
    repository.params = parse_yaml((repository.root / "params.yaml").read_text())
    change(repository.params, params or {})
    repository.write_params()
    lock(repository, files, **options)
    repository.commit()
    repository.git("tag", name)
    repository.git("reset", "--quiet", "--hard", "HEAD~")
    repository.params = parse_yaml((repository.root / "params.yaml").read_text())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with the results of several runs. Read only."""
    repository = Repository(tmp_path_factory.mktemp("compare") / "repository")
    copy_pipeline(repository.root)
    repository.git("init", "--quiet")
    repository.photos(kaggle_files(cats=1, dogs=1))
    repository.write_params()
    repository.commit()
    repository.git("tag", "nothing-stored")

    repository.dvc("repro", "track_code")
    for stage in parse_yaml((repository.root / "dvc.yaml").read_text())["stages"].values():
        for out in (*stage["outs"], *stage.get("metrics", [])):
            name = out if isinstance(out, str) else next(iter(out))
            if name != "data/code":
                write(repository, {name if Path(name).suffix else f"{name}/content.json": b"{}"})
    write(repository, results(HEAD_WRONG) | {"metrics/networks/resnet34.json": b'{"kept_epoch": 0}'})
    repository.dvc("commit", "--force")
    repository.commit()

    write(repository, results(SLOWER_WRONG))
    change(repository.params, {"lr": 0.0005})
    repository.write_params()
    repository.dvc("exp", "save", "--name", "slower")
    repository.git("reset", "--quiet", "--hard")
    write(repository, results(HEAD_WRONG))

    for seed, wrong in enumerate(SEEDS_WRONG[1:], start=2):
        store(repository, f"seed-{seed}", results(wrong), {"train.seed": seed})
    for seed, wrong in enumerate(BETTER_SEEDS_WRONG, start=1):
        store(repository, f"better-{seed}", results(wrong), {"train.seed": seed, "train.epochs": 2})
    store(repository, "renamed", results(HEAD_WRONG), {"train.launcher": "python3"})
    store(repository, "split-2", results(HEAD_WRONG, salt="b"), {"prepare.seed": 2})
    store(repository, "new-archive", results(HEAD_WRONG, salt="c"))
    store(repository, "relabelled", results(HEAD_WRONG, relabelled=3))
    store(repository, "birds", results(HEAD_WRONG, classes=["cat", "bird"]), {"classes": ["cat", "bird"]})
    store(repository, "fitted", results(SLOWER_WRONG), {"ensemble.method": "fitted_weights"})
    store(repository, "lost", results(HEAD_WRONG, scale=2), {"lr": 0.1}, cached=False)
    store(repository, "swapped", results(SLOWER_WRONG | {"resnet34": [*range(10, 30), 2]}, scale=1.1))
    networks = {name: {"weights": "none"} for name in ("resnet18", "mobilenet_v2")}
    wrong = {"resnet18": range(19), "mobilenet_v2": range(5)}
    store(repository, "mobile", results(wrong), {"networks": networks})
    store(repository, "even", results(EVEN_WRONG), {"lr": 0.002})
    store(repository, "harder-test", results(HEAD_WRONG, test={"resnet18": range(100)}), {"lr": 0.003})
    old = results(HEAD_WRONG)
    for name, spoil in {
        "not-evaluated": lambda stages: stages.pop("evaluate"),
        "version-1": lambda stages: output_of(stages["evaluate"], PREDICTIONS).update(path="metrics/predictions.csv"),
        "mixed": lambda stages: stages["train_resnet34"]["params"]["params.yaml"].update(lr=0.5),
        "retrained": retrain,
        "half-run": lambda stages: next(of for of in stages["ensemble"]["deps"] if of["path"] == PREDICTIONS).update(
            md5="0" * 32
        ),
    }.items():
        store(repository, name, old, spoil=spoil)
    code = {CODE: (repository.root / CODE).read_bytes().replace(b"stages/evaluate.py ", b"stages/evaluate.py 0")}
    for name, params in {"new-code": {}, "new-code-and-seed": {"train.seed": 2}}.items():
        write(repository, code)
        store(repository, name, old | code, params)
    store(repository, "old", old | {PREDICTIONS: old[PREDICTIONS].replace(b"logit_", b"margin_")})
    return repository


@pytest.fixture
def repository(stored: Repository, tmp_path: Path) -> Repository:
    """A copy of the repository, free to be changed."""
    shutil.copytree(stored.root, tmp_path / "repository")
    copy = Repository(tmp_path / "repository")
    copy.params = parse_yaml((copy.root / "params.yaml").read_text())
    return copy


Compare = Callable[..., str]


@pytest.fixture
def printed_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Compare:
    """A function that runs the tool in a repository, in this process, and returns what it prints."""

    def run(repository: Repository, *arguments: str) -> str:
        monkeypatch.chdir(repository.root)
        monkeypatch.setattr("sys.argv", ["compare.py", *arguments])
        reading.dvc_settings.cache_clear()
        capsys.readouterr()  # what the commands before have printed
        compare.main()
        printed, warnings = capsys.readouterr()
        assert warnings == ""
        assert max(map(len, printed.splitlines())) <= 100
        return printed

    return run


def block(printed: str, network: str) -> list[str]:
    """The lines that are printed of a network or the ensemble."""
    [text] = re.findall(rf"^{network}\n(.+?)\n\n", printed, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for line in text.splitlines()]


def verdict(printed: str, network: str) -> str:
    """The sentence that ends the only comparison of a network."""
    lines = block(printed, network)
    [last_fact] = [number for number, line in enumerate(lines) if line.startswith("log loss  ")]
    return " ".join(lines[last_fact + 1 :])


def read_answers(files: Mapping[str, bytes], network: str, split: str = "validation") -> tuple[np.ndarray, np.ndarray]:
    """By photo: whether a network was correct, and its log loss. Worked out from the table of logits."""
    rows = pd.read_csv(io.BytesIO(files[PREDICTIONS])).query("network == @network and split == @split")
    of_dog = np.where(rows["label"] == "dog", 1, -1) * rows["logit_dog"].to_numpy()
    return of_dog > 0, -np.log(sigmoid(of_dog))


# ---- what it prints ----


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_compare_says_what_to_do_if_git_does_not_trust_the_repository(tmp_path: Path) -> None:
    repository = stand_in_repository(tmp_path / "repository")
    for path in (repository.root, repository.root / ".git"):
        os.chown(path, 12345, 12345)
    assert error_line(repository.run("compare.py", "HEAD")) == (
        "git does not trust this project, because another user owns its folder; if you trust it, run `git config "
        f"--global --add safe.directory {repository.root}`"
    )


def test_compare_prints_paired_differences_of_two_runs(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "slower")
    head = stored.git("rev-parse", "--short=7", "HEAD").strip()
    assert printed.startswith(f"Judged on 200 validation photos.\n\n  HEAD    {head}\n  slower  ")
    assert re.search(r"^  slower  \w{7}; lr 0.0005 instead of 0.001$", printed, flags=re.MULTILINE)

    (before, loss_before), (after, loss_after) = (
        read_answers(results(wrong), "resnet18") for wrong in (HEAD_WRONG, SLOWER_WRONG)
    )
    test = ttest_rel(loss_after, loss_before)
    interval = test.confidence_interval()
    error = math.sqrt((12 / 202 - (2 / 202) ** 2) / 202)  # six corrected, four broken, and one more of each
    low, high = 2 / 202 - 1.959964 * error, 2 / 202 + 1.959964 * error
    assert block(printed, "resnet18") == [
        f"HEAD    accuracy 0.9000 (180 of 200), log loss {loss_before.mean():.4f}",
        f"slower  accuracy 0.9100 (182 of 200), log loss {loss_after.mean():.4f}",
        f"accuracy  +0.0100, 95 % interval {low:+.4f} to {high:+.4f} over photos",
        f"photos    6 corrected, 4 broken; McNemar's exact test: p = {binomtest(4, 10).pvalue:.2g}",
        f"log loss  {(loss_after - loss_before).mean():+.4f}, 95 % interval {interval.low:+.4f} to "
        f"{interval.high:+.4f} over photos",
        "Within chance; about 4,100 photos would be needed to see a difference this small.",
    ]
    assert block(printed, "resnet34")[-1] == "The same model: the fitted head, because no training improved on it."
    assert before.sum() == 180 and (after & ~before).sum() == 6


def test_compare_reads_the_ensembles_probabilities(stored: Repository, printed_by: Compare) -> None:
    ensemble = block(printed_by(stored, "HEAD", "better-1"), "ensemble")
    losses = {}
    for name, wrong in {"HEAD": HEAD_WRONG, "better-1": BETTER_WRONG}.items():
        rows = pd.read_csv(io.BytesIO(results(wrong)[ENSEMBLE_PREDICTIONS])).query("split == 'validation'")
        losses[name] = log_loss(rows["label"], rows[["probability_cat", "probability_dog"]], labels=CLASSES)
    assert ensemble[0] == f"HEAD      accuracy 0.9000 (180 of 200), log loss {losses['HEAD']:.4f}"
    assert ensemble[1] == f"better-1  accuracy 0.9400 (188 of 200), log loss {losses['better-1']:.4f}"
    assert ensemble[3] == f"photos    8 corrected, 0 broken; McNemar's exact test: p = {2 * 0.5**8:.2g}"
    assert ensemble[-1] == "Better."


def test_compare_says_better_and_worse_and_what_chance_that_covers(stored: Repository, printed_by: Compare) -> None:
    assert block(printed_by(stored, "HEAD", "better-1"), "resnet18")[-1] == "Better."
    printed = printed_by(stored, "better-1", "HEAD")
    assert block(printed, "resnet18")[-1] == "Worse."
    assert "photos    0 corrected, 16 broken; McNemar's exact test: p < 0.0001" in block(printed, "resnet18")
    explanation = " ".join(printed.rpartition("\n\n")[2].split())
    assert explanation.startswith("Differences are from better-1. Over photos: the chance of which photos were chosen")
    assert "It does not cover the seed" in explanation
    assert "for a power of 80 %" in explanation
    assert "Over seeds" not in explanation
    assert "Holm" not in printed


def test_compare_takes_head_and_the_workspace_if_it_is_not_told(repository: Repository) -> None:
    """Run as users run it; nothing changes, and a second run of the same recipe is not pooled with the first."""
    write(repository, results(SLOWER_WRONG))
    change(repository.params, {"lr": 0.0005})
    repository.write_params()
    lock(repository, results(SLOWER_WRONG), cached=False)
    before = repository.git("status", "--porcelain", "--ignored")
    done = repository.run("compare.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  workspace  lr 0.0005 instead of 0.001$", done.stdout, flags=re.MULTILINE)
    assert block(done.stdout, "resnet18")[1].startswith("workspace  accuracy 0.9100 (182 of 200)")
    assert repository.run("compare.py", "HEAD").stdout == done.stdout
    assert repository.git("status", "--porcelain", "--ignored") == before


def test_compare_says_that_identical_predictions_are_the_same(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "renamed", "workspace", "new-code")
    assert "; the same params; different code: stages/evaluate.py\n" in printed
    assert "; train.launcher python3 instead of python\n" in printed
    assert "\n  workspace  the same params\n" in printed
    same = {
        "resnet18": "The same model.",
        "resnet34": "The same model: the fitted head, because no training improved on it.",
        "ensemble": "The same: the predictions are identical.",
    }
    for network, sentence in same.items():
        lines = block(printed, network)
        assert lines[2] == lines[4] == lines[6] == sentence
        assert len(lines) == 7
    assert block(printed_by(stored, "HEAD", "retrained"), "resnet18")[-1] == "The same: the predictions are identical."


def test_compare_says_what_could_be_seen_if_accuracy_is_the_same(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "slower", "swapped")
    assert verdict(printed, "resnet18") == (
        "Within chance: the same photos are correct. Log loss is lower by more than chance."
    )
    found = re.fullmatch(
        "Within chance: accuracy is the same; a difference of (.*) or more would probably have been seen.",
        verdict(printed_by(stored, "HEAD", "even"), "resnet18"),
    )
    assert float(found[1]) == pytest.approx((1.959964 + 0.841621) * math.sqrt(8 / 200) / math.sqrt(200), abs=5e-5)


def test_compare_judges_on_test_only_if_asked_and_says_so(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "harder-test", "--split", "test")
    assert printed.startswith("Judged on 200 test photos (--split test). They give unbiased scores only if you")
    assert block(printed, "resnet18")[1].startswith("harder-test  accuracy 0.5000 (100 of 200)")
    assert "test" not in printed_by(stored, "HEAD", "harder-test").replace("harder-test", "").replace("exact test", "")


def test_compare_corrects_for_several_comparisons(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "slower", "better-1", "mobile")
    lines = block(printed, "resnet18")
    p = [2 * 0.5**16, binomtest(4, 10).pvalue, 1]  # better-1, slower, mobile
    assert "photos    16 corrected, 0 broken; McNemar's exact test: p < 0.0001 (Holm: p < 0.0001)" in lines
    assert f"photos    6 corrected, 4 broken; McNemar's exact test: p = {p[1]:.2g} (Holm: p = 1)" in lines
    assert "photos    1 corrected, 0 broken; McNemar's exact test: p = 1" in lines
    ensemble = block(printed, "ensemble")
    assert "photos    8 corrected, 0 broken; McNemar's exact test: p = 0.0078 (Holm: p = 0.023)" in ensemble
    assert "p is corrected by Holm's method for the 3 comparisons of a network; intervals are not." in printed


def test_compare_pools_runs_that_differ_only_in_their_seed(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "better-1", "seed-2", "better-2", "seed-3", "better-3")
    assert re.search(r"^  HEAD \(3 seeds\)      HEAD \w{7}, seed-2 \w{7}, seed-3 \w{7}; seeds 1, 2, 3$", printed, re.M)
    assert re.search(r"; seeds 1, 2, 3;\s+train.epochs 2 instead of 1$", printed, re.M)

    (before, loss_before), (after, loss_after) = (
        map(np.stack, zip(*(read_answers(results(wrong), "resnet18") for wrong in recipe), strict=True))
        for recipe in (SEEDS_WRONG, BETTER_SEEDS_WRONG)
    )
    seeds = ttest_ind(after.mean(axis=1), before.mean(axis=1), equal_var=False)
    loss_seeds = ttest_ind(loss_after.mean(axis=1), loss_before.mean(axis=1), equal_var=False).confidence_interval()
    loss_photos = ttest_rel(loss_after.mean(axis=0), loss_before.mean(axis=0)).confidence_interval()
    photos = differences.accuracy_over_photos(before, after)
    interval, accuracies = seeds.confidence_interval(), before.mean(axis=1)
    lines = block(printed, "resnet18")
    assert lines[0].startswith(
        f"HEAD (3 seeds)      accuracy {accuracies.mean():.4f} (SD {accuracies.std(ddof=1):.4f}, "
        f"{accuracies.min():.4f} to {accuracies.max():.4f}), log loss {loss_before.mean():.4f} (SD "
    )
    assert lines[2:] == [
        f"accuracy  {photos.mean:+.4f}, 95 % interval {photos.low:+.4f} to {photos.high:+.4f} over photos, "
        f"{interval.low:+.4f} to {interval.high:+.4f} over seeds",
        "photos    17 more often correct, 2 less often; exact test: p < 0.0001",
        f"seeds     Welch's test: p = {seeds.pvalue:.2g}",
        f"log loss  {(loss_after.mean() - loss_before.mean()):+.4f}, 95 % interval {loss_photos.low:+.4f} to "
        f"{loss_photos.high:+.4f} over photos, {loss_seeds.low:+.4f} to {loss_seeds.high:+.4f} over seeds",
        "Better, over photos and over seeds.",
    ]
    assert "Over seeds: the chance of training, on these photos" in printed


def test_compare_of_seeds_of_one_recipe_shows_their_spread(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "seed-2", "seed-3")
    assert "These runs differ only in train.seed: any difference between them is due to the seed.\n" in printed
    assert "; train.seed 2 instead of 1\n" in printed
    lines = block(printed, "resnet18")
    assert lines[0].startswith("all 3 seeds: accuracy 0.8983 (SD 0.0029, 0.8950 to 0.9000), log loss ")
    assert lines[3] == "accuracy  +0.0000, 95 % interval -0.0194 to +0.0194 over photos"
    assert lines[4] == "photos    1 corrected, 1 broken; McNemar's exact test: p = 1"


def test_compare_does_not_pool_runs_of_different_code(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "new-code-and-seed")
    assert "These runs differ only in" not in printed
    assert "train.seed 2 instead of 1; different code: stages/evaluate.py" in " ".join(printed.split())


def test_compare_does_not_test_over_seeds_with_one_run_of_a_recipe(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "seed-2", "better-1")
    lines = block(printed, "resnet18")
    assert lines[3].startswith("photos    17 more often correct, 0 less often")
    assert not any(line.startswith("seeds") for line in lines)
    assert lines[-1] == "Better for these trained models; not tested over seeds."
    assert "Not tested over seeds: that needs at least two seeds of both recipes." in printed


def test_compare_says_which_networks_it_leaves_out(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "mobile")
    assert "resnet34 is not compared: mobile has none.\nmobilenet_v2 is not compared: HEAD has none.\n" in printed
    assert "\nresnet18\n" in printed and "\nensemble\n" in printed
    assert "\nresnet34\n" not in printed and "\nmobilenet_v2\n" not in printed
    assert "no networks.resnet34.weights, also networks.mobilenet_v2.weights none" in " ".join(printed.split())


def test_compare_leaves_out_an_ensemble_that_was_fitted_to_the_photos(stored: Repository, printed_by: Compare) -> None:
    printed = printed_by(stored, "HEAD", "fitted")
    assert "The ensemble is not compared for fitted: its weights were fitted to the validation photos" in printed
    assert "\nensemble\n" not in printed
    assert "\nensemble\n" in printed_by(stored, "HEAD", "fitted", "--split", "test")


# ---- what cannot be compared ----


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("nosuch", r"unknown Git revision 'nosuch'; expected a git revision, branch or tag, an experiment \(see .*"),
        ("nothing-stored", r"nothing-stored \(\w{7}\) has no dvc.lock, and therefore no stored results"),
        ("not-evaluated", "not-evaluated has no stored predictions: dvc.lock lacks evaluate; run `dvc repro`"),
        (
            "split-2",
            "HEAD and split-2 cannot be paired: their validation photos are not the same (200 and 200, of which they "
            "share 100); prepare.seed 2 instead of 1",
        ),
        (
            "new-archive",
            "HEAD and new-archive cannot be paired: their validation photos are not the same (200 and 200, of which "
            "they share 100); their archives have different photos",
        ),
        ("relabelled", "HEAD and relabelled cannot be paired: 3 of their validation photos have different labels"),
        ("birds", "HEAD and birds cannot be paired: their classes are cat, dog and cat, bird"),
        (
            "lost",
            r"lost \(\w{7}\): metrics/predictions/networks.csv is not in DVC's cache, and there is no default remote; "
            "run `dvc push` or `dvc exp push` in the clone that has it",
        ),
        (
            "old",
            "old: metrics/predictions/networks.csv has no column logit_CLASS; another version of this pipeline "
            "wrote it; run `dvc repro` there",
        ),
        (
            "version-1",
            "version-1 was run with another version of this pipeline, which did not write "
            "metrics/predictions/networks.csv",
        ),
        ("mixed", "mixed is out of date: some stages ran with another lr; run `dvc repro`"),
        (
            "half-run",
            "half-run is out of date: ensemble ran with another metrics/predictions/networks.csv; run `dvc repro`",
        ),
        ("HEAD", "HEAD is given twice; see compare.py --help"),
    ],
)
def test_compare_names_what_it_cannot_compare(
    other: str, message: str, stored: Repository, printed_by: Compare
) -> None:
    with pytest.raises(UserError) as raised:
        printed_by(stored, "HEAD", other)
    [line] = raised.value.args
    assert line == message or re.fullmatch(message, line)


def test_compare_names_results_in_the_workspace_that_are_missing_or_changed(
    repository: Repository, printed_by: Compare
) -> None:
    with (repository.root / PREDICTIONS).open("a") as file:
        file.write("\n")
    with pytest.raises(
        UserError, match=r"workspace: metrics/predictions/networks.csv is not the one that `dvc repro` wrote"
    ):
        printed_by(repository)
    (repository.root / ENSEMBLE_PREDICTIONS).unlink()
    write(repository, results(HEAD_WRONG) | {PREDICTIONS: results(HEAD_WRONG)[PREDICTIONS]})
    (repository.root / ENSEMBLE_PREDICTIONS).unlink()
    done = repository.run("compare.py")
    assert error_line(done) == (
        "metrics/predictions/ensemble.csv does not exist; run `dvc repro` to create it, or `dvc checkout` to restore "
        "the one in dvc.lock"
    )


def test_compare_reads_from_the_remote_what_the_cache_lacks(
    repository: Repository, printed_by: Compare, tmp_path: Path
) -> None:
    expected = printed_by(repository, "HEAD", "better-1")
    cache = repository.root / ".dvc/cache"
    remote = tmp_path / "remote"
    shutil.copytree(cache, remote)
    shutil.rmtree(cache)
    repository.dvc("remote", "add", "--default", "storage", str(remote))  # in the workspace, not in these revisions
    assert printed_by(repository, "HEAD", "better-1") == expected

    repository.dvc("config", "core.remote", "gone")
    assert error_line(repository.run("compare.py")) == (
        "DVC's default remote is gone, which does not exist; see `dvc remote list`"
    )
    repository.dvc("config", "core.remote", "storage")
    remote.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as raised:
        printed_by(repository, "HEAD", "better-1")
    assert re.fullmatch(
        r"HEAD \(\w{7}\): data/prepared/split.csv is not in DVC's cache, nor in the remote storage; run .*",
        raised.value.args[0],
    )


# ---- the page ----


def test_compare_writes_a_page_with_the_photos_that_changed_sides(repository: Repository, printed_by: Compare) -> None:
    printed = printed_by(repository, "HEAD", "slower", "--html")
    assert printed.endswith("\nThe photos that changed sides: metrics/compare.html\n")
    page = (repository.root / PAGE).read_text(encoding="utf-8")
    assert "://" not in page
    links = {"#main", "data", "#comparison-1", "#comparison-2", "#comparison-3"}
    assert set(re.findall(r'(?:src|href)="([^":]*)', page)) == links
    assert "<h3>Corrected: 6</h3>" in page and "<h3>Broken: 4</h3>" in page
    assert "<img" not in page  # data/prepared has no images
    text = html.unescape(page)
    resnet18 = text[text.index('id="comparison-1"') : text.index('id="comparison-2"')]
    for number in (0, *range(2, 6), *range(50, 54)):
        assert resnet18.count(f"validation{number}.jpg") == 1
    assert f"validation{UGLY}" in resnet18 and UGLY not in page
    assert "validation6.jpg" not in resnet18
    for line in block(printed, "resnet18"):
        assert re.sub("^(HEAD|slower|accuracy|photos|log loss)  +", r"\1: ", line) in resnet18


def test_compare_shows_images_if_the_workspace_holds_the_same_split(
    repository: Repository, printed_by: Compare, browser: "Browser"
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (PHOTOS, 8, 8, 3), dtype=np.uint8)
    packed = repository.root / "data/prepared/validation.safetensors"
    packed.unlink()
    save_file({"pixels": pixels, "labels": np.zeros(PHOTOS, np.uint16)}, packed, {"description": "{}"})
    printed_by(repository, "HEAD", "seed-2", "better-1", "better-2", "--html")
    page = (repository.root / PAGE).read_text(encoding="utf-8")
    names = re.findall('<img src="data:image/jpeg;base64,[^"]+" alt="Photo (.*?), labelled', page)
    assert len(names) > 16 and "validation4.jpg" in names
    assert "More often correct: " in page and "Less often correct: " in page

    opened = browser.new_page(viewport={"width": 360, "height": 800})
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.goto((repository.root / PAGE).as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    assert problems == []
    opened.close()


# ---- Markdown ----


def test_compare_writes_a_comment_for_github_with_scores_differences_verdicts_and_plots(
    repository: Repository, printed_by: Compare
) -> None:
    name = "a|b_`c`<b>"
    repository.git("tag", name, "even")
    printed = printed_by(repository, "HEAD", "better-1", name, "--markdown")
    assert printed.endswith("\nAs Markdown: metrics/compare.md, with plots in metrics/compare/\n")
    text = (repository.root / "metrics/compare.md").read_text(encoding="utf-8")
    page = MarkdownIt("commonmark").enable("table").render(text)
    rows = [
        [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)
    ]
    assert [(row[0], row[1]) for row in rows if len(row) == 3][1:] == [
        (network, run) for network in (*NETWORKS, "ensemble") for run in ("HEAD", "better-1", name)
    ]
    lines = block(printed, "resnet18")
    scores = {row[1]: row[2] for row in rows if len(row) == 3 and row[0] == "resnet18"}
    assert [f"{run:<{len(name)}}  {score}" for run, score in scores.items()] == [lines[0], lines[1], lines[6]]
    for run, start in (("better-1", 2), (name, 7)):
        [row] = [row for row in rows if row[:2] == ["resnet18", run] and len(row) == 6]
        facts = [re.split(" {2,}", line)[1] for line in lines[start : start + 3]]
        assert row[3:] == facts
        assert " ".join(lines[start + 3 :]).startswith(row[2])
    assert name in re.findall(r"<h3>(.*?)</h3>", html.unescape(page))[0]
    links = re.findall(r'<img src="([^"]+)"', page)
    assert links == ["compare/accuracy.png", "compare/log_loss.png"]
    for link in links:
        with Image.open(repository.root / "metrics" / link) as plot:
            assert (plot.format, plot.width < 600) == ("PNG", True)
    assert repository.git("status", "--porcelain", "--", "metrics/compare", "metrics/compare.md") == ""


# ---- the statistics ----


def answers(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runs, by the numbers of photos on which both are correct, only the first, only the second, and neither."""
    before = np.repeat([True, True, False, False], counts)
    after = np.repeat([True, False, True, False], counts)
    return before[None], after[None]


def test_accuracy_interval_is_the_published_one() -> None:
    """Bentur et al. (2009), the example of Fagerland, Lydersen and Laake (2014): -0.508 to -0.013."""
    difference = differences.accuracy_over_photos(*answers(1, 7, 1, 12))
    assert difference.mean == pytest.approx(-6 / 21)
    assert (round(difference.low, 3), round(difference.high, 3)) == (-0.508, -0.013)


@pytest.mark.parametrize("expected", [3, 9, 20])
@pytest.mark.parametrize("share_corrected", [0.5, 1.0])
def test_accuracy_interval_contains_the_truth_as_often_as_it_says(expected: int, share_corrected: float) -> None:
    """The exact probability of that, for 300 photos of which `expected` change on average."""
    contained = total = 0.0
    truth = expected / 300 * (2 * share_corrected - 1)
    for changed, p in enumerate(binom.pmf(range(60), 300, expected / 300)):
        for corrected, share in enumerate(binom.pmf(range(changed + 1), changed, share_corrected)):
            if p * share > 1e-5:
                counts = (300 - changed, changed - corrected, corrected, 0)
                interval = differences.accuracy_over_photos(*answers(*counts))
                contained += p * share * (interval.low <= truth <= interval.high)
                total += p * share
    assert total > 0.99
    assert 0.935 < contained / total <= 1


def test_exact_p_is_mcnemars_for_two_runs_and_counts_all_signs_for_more() -> None:
    for corrected, broken in ((0, 0), (1, 0), (4, 6), (30, 12), (300, 240)):
        counts = (700, broken, corrected, 50)
        expected = binomtest(corrected, corrected + broken).pvalue if corrected + broken else 1.0
        assert differences.sign_flip_p(*answers(*counts)) == pytest.approx(expected, rel=1e-9)

    random = np.random.default_rng(0)
    for _ in range(5):
        before, after = random.random((2, 10)) < 0.8, random.random((3, 10)) < 0.6
        changes = after.mean(axis=0) - before.mean(axis=0)
        sums = [abs(np.dot(signs, changes)) for signs in itertools.product((1, -1), repeat=10)]
        expected = np.mean(np.array(sums) >= abs(changes.sum()) - 1e-9)
        assert differences.sign_flip_p(before, after) == pytest.approx(expected, rel=1e-9)


def test_photos_needed_give_mcnemars_test_a_power_of_80_percent() -> None:
    samples = answers(960, 10, 20, 10)  # one in 100 of the photos more
    needed = differences.photos_needed(*samples)
    draws = np.random.default_rng(0).multinomial(needed, [0.97, 0.01, 0.02], size=4000)
    broken, corrected = draws[:, 1], draws[:, 2]
    p = 2 * binom.cdf(np.minimum(broken, corrected), broken + corrected, 0.5)
    assert 0.76 < (p < 0.05).mean() < 0.82  # the exact test is a little conservative
    without_correction = (1.959964 * math.sqrt(0.03) + 0.841621 * math.sqrt(0.03 - 0.01**2)) ** 2 / 0.01**2
    assert 1.02 < needed / without_correction < 1.1
    assert differences.photos_needed(*answers(100, 5, 5, 0)) is None
    assert differences.photos_needed(*answers(100, 0, 0, 5)) is None


def test_welchs_test_over_seeds_needs_several_runs_that_differ() -> None:
    random = np.random.default_rng(0)
    before, after = random.random((3, 50)) < 0.8, random.random((4, 50)) < 0.7
    test = ttest_ind(after.mean(axis=1), before.mean(axis=1), equal_var=False)
    difference, interval = differences.over_seeds(before, after), test.confidence_interval()
    assert [difference.low, difference.high, difference.p] == pytest.approx([*interval, test.pvalue])
    assert differences.over_seeds(before[:1], after) is None
    assert differences.over_seeds(before[[0, 0]], after[[1, 1]]) is None
    assert differences.over_seeds(before[[0, 0]], after) is not None


def test_holms_correction_is_the_known_one() -> None:
    assert differences.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert differences.holm([0.8, 0.7]) == [1, 1]
    assert differences.holm([0.2]) == [0.2]
    assert differences.holm([]) == []
