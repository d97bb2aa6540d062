"""Cross-validation: the folds, the stages that train and join them, and tools/folds.py, which runs these with DVC."""

import math
import re
import runpy

from pipeline.core.errors import UserError
from pipeline.folds.assigning import assign_folds, parts_of
from pipeline.folds.scoring import log_loss_interval
from pipeline.folds.stages import pipeline_text
from tests.support.projects import REPOSITORY, Project, Repository, error_line

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score, log_loss

OF_3 = ("--folds", "3", "--seed", "1")

# Instead of stages/fold.py: photos whose SHA-256 starts with a digit from 0 to `wrong` are answered incorrectly, and
# those that chose have the opposite answers.
STAND_IN = """
import json, sys
from pathlib import Path
sys.path.insert(0, ".")
from pipeline.core.fold_paths import fold_predictions, fold_scores
from pipeline.core.split_table import read_split_table
from pipeline.folds.assigning import assign_folds, parts_of
import yaml

network, fold, folds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[4]), int(sys.argv[6])
if fold == 3 and Path("stop").exists():
    sys.exit("error: stopped")
with open("ran", "a") as file:
    print(f"{network}-{fold}", file=file)
params = yaml.safe_load(Path("params.yaml").read_text())
wrong = str(2 if params["lr"] < 0.01 else 4) if network == "resnet18" else "1"
photos = assign_folds(read_split_table(), folds, seed)
photos["split"] = parts_of(photos, fold)
photos = photos[photos["split"] != "train"].assign(network=network)
is_right = (photos["sha256"].str[0] > wrong) == (photos["split"] == "held_out")
sign = is_right.map({True: 1, False: -1})
for name in ("cat", "dog"):
    photos[f"logit_{name}"] = (photos["label"] == name) * 2.0 * sign
columns = ["split", "photo", "label", "network", "logit_cat", "logit_dog"]
fold_predictions(network, fold).parent.mkdir(parents=True, exist_ok=True)
photos[columns].to_csv(fold_predictions(network, fold), index=False)
fold_scores(network, fold).write_text(json.dumps({"kept_epoch": fold}))
sys.exit()
"""


def split_table(**classes: int) -> pd.DataFrame:
    """A split table with this many photos of each class, of which every third is in validation; and as many in test."""
    rows = [
        {"photo": f"{split}/{label}{number}.jpg", "label": label, "split": split}
        for label, count in classes.items()
        for number in range(count)
        for split in ("test", "validation" if number % 3 == 0 else "train")
    ]
    table = pd.DataFrame(rows).sort_values("split", ignore_index=True)
    return table.assign(sha256=[f"{number:064x}" for number in range(len(table))], copy_of="")


@pytest.mark.parametrize("folds", [3, 5, 7])
def test_folds_have_the_classes_in_proportion_and_every_part_is_another_one(folds: int) -> None:
    table = split_table(ant=20, bee=33, owl=7)
    photos = assign_folds(table, folds, seed=1)
    assert sorted(photos["photo"]) == sorted(table.loc[table["split"] != "test", "photo"])
    counts = pd.crosstab(photos["fold"], photos["label"])
    assert (counts.max() - counts.min() <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1
    held_out, chose = [], []
    for fold in range(1, folds + 1):
        parts = parts_of(photos, fold)
        assert set(photos.loc[parts == "held_out", "fold"]) == {fold}
        held_out += photos.loc[parts == "held_out", "photo"].tolist()
        chose += photos.loc[parts == "validation", "photo"].tolist()
        assert (parts == "train").sum() >= len(photos) * (folds - 2) // folds - 1
    assert sorted(held_out) == sorted(chose) == sorted(photos["photo"])


def test_folds_depend_only_on_the_seed_and_the_photos() -> None:
    table = split_table(ant=20, bee=33)
    by_photo = assign_folds(table, 5, seed=1).set_index("photo")["fold"]
    shuffled = table.sample(frac=1, random_state=3)
    shuffled["split"] = shuffled["split"].replace({"validation": "train"})
    pd.testing.assert_series_equal(assign_folds(shuffled, 5, seed=1).set_index("photo")["fold"], by_photo)
    others = assign_folds(table, 5, seed=2).set_index("photo")["fold"]
    assert (others[by_photo.index] != by_photo).any()


def test_copies_are_in_one_fold_and_one_of_them_is_scored() -> None:
    table = split_table(ant=20, bee=33)
    train = table.index[(table["split"] == "train") & (table["label"] == "bee")]
    table.loc[train[1:9], "copy_of"] = table.loc[train[0], "photo"]
    table.loc[train[9:11], "copy_of"] = "an excluded photo.jpg"
    photos = assign_folds(table, 5, seed=1).set_index("photo")
    for copies in (train[:9], train[9:11]):
        group = photos.loc[table.loc[copies, "photo"]]
        assert group["fold"].nunique() == 1
        scored = group[group["copy_of"] == ""]
        assert len(scored) == 1
        assert set(group["copy_of"]) == {"", scored.index[0]}
    assert np.ptp(photos[photos["copy_of"] == ""].groupby("fold").size()) <= 1


def test_a_class_with_fewer_photos_than_folds_is_an_error() -> None:
    table = split_table(ant=20, bee=4)
    with pytest.raises(UserError, match=r"too few of bee \(4\), counting copies once; `python tools/folds.py 4`, add"):
        assign_folds(table, 5, seed=1)
    assert set(assign_folds(table, 4, seed=1)["fold"]) == {1, 2, 3, 4}
    table.loc[table["label"] == "bee", "copy_of"] = "x.jpg"
    with pytest.raises(UserError, match=r"too few of bee \(1\), counting copies once; add photos"):
        assign_folds(table, 3, seed=1)


def test_the_interval_of_the_log_loss_is_one_of_its_logarithm() -> None:
    losses = np.array([0.1, 0.1, 0.2, 1.6])
    low, high = log_loss_interval(losses).values()
    assert math.isclose(low * high, losses.mean() ** 2)
    assert high / losses.mean() == pytest.approx(math.exp(3.18245 * losses.std(ddof=1) / 2 / 0.5), rel=1e-5)
    assert log_loss_interval(np.zeros(3)) == {"log_loss_low": 0, "log_loss_high": 0}


@pytest.mark.parametrize(("name", "script"), [("train", "fold"), ("join", "join_folds")])
def test_the_stages_depend_on_the_code_and_params_that_their_scripts_read(name: str, script: str) -> None:
    stage = yaml.safe_load(pipeline_text(["resnet18"], 3, 1))["stages"][name]
    assert stage["cmd"].startswith(f"python stages/{script}.py ")
    assert f"data/code/{script}.txt" in stage["deps"]
    params = runpy.run_path(f"{REPOSITORY}/stages/{script}.py")["Params"]
    assert {key.partition(".")[0] for key in stage["params"]} == {*params.model_fields}


def test_folds_whose_file_was_edited_are_refused(project: Project) -> None:
    path = project.root / "folds/dvc.yaml"
    path.parent.mkdir()
    path.write_text("stages: {}")
    assert error_line(project.run("folds.py")).startswith("folds/dvc.yaml is not what tools/folds.py writes; delete it")


def predictions_of_fold_1(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.root / "metrics/folds/models/resnet18-1.csv").set_index("photo")


@pytest.mark.slow
def test_a_photo_of_the_fold_that_is_held_out_changes_only_its_own_prediction(tiny: Project) -> None:
    """It neither trains nor chooses."""
    tiny.succeed("fold.py", "resnet18", "1", *OF_3)
    before = predictions_of_fold_1(tiny)
    photo = before.index[before["split"] == "held_out"][0]
    split = tiny.row_of(photo)["split"]
    path = tiny.root / f"data/prepared/{split}.safetensors"
    pixels = tiny.packed(split)[0][[row["photo"] for row in tiny.split_table() if row["split"] == split].index(photo)]
    path.write_bytes(path.read_bytes().replace(pixels.tobytes(), bytes(pixels.nbytes)))  # black
    tiny.succeed("fold.py", "resnet18", "1", *OF_3)
    after = predictions_of_fold_1(tiny)
    assert before.index[(before != after).any(axis=1)].tolist() == [photo]
    assert before["split"].value_counts().to_dict() == {"held_out": 4, "validation": 4}
    assert tiny.read_json("metrics/folds/models/resnet18-1.json")["kept_epoch"] == 1


@pytest.mark.slow
def test_a_fold_names_what_is_wrong(tiny: Project) -> None:
    tiny.write_params()
    assert error_line(tiny.run("fold.py", "resnet18", "4", *OF_3)).startswith("FOLD is 4; expected 1 to 3; see ")
    assert error_line(tiny.run("fold.py", "vgg16", "1", *OF_3)) == (
        "vgg16 is not under networks in params.yaml; run `python tools/folds.py` to update the folds"
    )
    tiny.params["train"]["batch_size"] = 5
    tiny.write_params()
    assert error_line(tiny.run("fold.py", "resnet18", "1", *OF_3)) == (
        "params.yaml: train.batch_size is 5; expected at most 4, the number of photos that train while fold 1 is held "
        "out"
    )
    assert error_line(tiny.run("join_folds.py", *OF_3)).startswith("metrics/folds/models/resnet18-1.csv does not exist")
    assert error_line(tiny.run("folds.py", "2")).startswith("2 folds; expected at least 3: one held out, ")


@pytest.mark.slow
def test_folds_are_cached_resumed_and_compared(repository: Repository) -> None:
    """With a stand-in for the stage that trains."""
    script, ran = repository.root / "stages/fold.py", repository.root / "ran"
    script.write_text(STAND_IN + script.read_text())
    (repository.root / "stop").touch()
    done = repository.run("folds.py", "3")
    assert done.returncode != 0
    assert "error: stopped" in done.stderr
    assert ran.read_text().split() == ["resnet18-1", "resnet18-2"]

    (repository.root / "stop").unlink()  # resumes
    done = repository.run("folds.py")
    assert done.returncode == 0, done.stderr
    models = [f"{network}-{fold}" for network in ("resnet18", "resnet34") for fold in (1, 2, 3)]
    assert ran.read_text().split() == models
    assert done.stdout.count("\n  ") > 15
    assert (
        "36 photos of train and validation; each was predicted by models that never saw it, in 3 folds" in done.stdout
    )
    before = repository.results()
    assert repository.run("folds.py").stdout == done.stdout
    assert ran.read_text().split() == models
    assert repository.results() == before
    assert (repository.root / "metrics/folds/folds.png").stat().st_size > 10_000

    # Whoever does not use it, and `dvc repro`, sees nothing of it.
    assert repository.stages_run_by("repro") == []
    assert {line[3:] for line in repository.git("status", "--porcelain").splitlines()} == {
        "data/code/fold.txt",
        "dvc.lock",
        "folds/",
        "metrics/folds/",
        "ran",
        "stages/fold.py",
    }
    ran.unlink()
    repository.commit()
    tracked = repository.git("ls-files", "metrics/folds").split()
    assert tracked == [f"metrics/folds/networks/{name}.json" for name in ("ensemble", "resnet18", "resnet34")]

    of_folds = pd.read_csv(repository.root / "metrics/folds/scores.csv", dtype={"fold": str})
    table = pd.read_csv(repository.root / "metrics/folds/predictions.csv", keep_default_na=False)
    photos = {row["photo"]: row for row in repository.split_table() if row["split"] in ("train", "validation")}
    assert dict(zip(table["photo"], table["label"], strict=True)) == {
        name: row["label"] for name, row in photos.items()
    }
    start = table["photo"].map(lambda name: photos[name]["sha256"][0])
    for network, wrong in (("resnet18", start <= "2"), ("resnet34", start <= "1"), ("ensemble", None)):
        probabilities = table[[f"{network}_probability_cat", f"{network}_probability_dog"]].to_numpy()
        predicted = np.array(["cat", "dog"])[probabilities.argmax(axis=1)]
        scores = repository.read_json(f"metrics/folds/networks/{network}.json")
        expected = {
            "accuracy": (predicted == table["label"]).mean(),
            "balanced_accuracy": balanced_accuracy_score(table["label"], predicted),
            "log_loss": log_loss(table["label"], probabilities),
        }
        assert {key: scores[key] for key in expected} == pytest.approx(expected, abs=2e-6)
        for key, value in expected.items():
            assert scores[f"{key}_low"] < value < scores[f"{key}_high"]
        if network != "ensemble":
            assert (predicted != table["label"]).tolist() == wrong.tolist()
            row = of_folds[(of_folds["network"] == network) & (of_folds["fold"] == "all")].iloc[0]
            assert row["validation_accuracy"] == pytest.approx(wrong.mean(), abs=1e-6)
        assert not any(key.startswith("validation") for key in scores)  # `dvc exp show` sorts by the ensemble's
        by_fold = (predicted == table["label"]).groupby(table["fold"]).mean()
        assert scores["accuracy_sd_over_folds"] == pytest.approx(by_fold.std(ddof=1), abs=2e-6)

    repository.dvc("exp", "run", "folds/dvc.yaml", "--name", "faster", "--set-param", "lr=0.02")
    done = repository.run("compare.py", "--folds", "HEAD", "faster", "--html")
    assert done.returncode == 0, done.stderr
    assert "Judged on 36 train and validation photos, each by models that never saw it (--folds)." in done.stdout
    assert "lr 0.02 instead of" in done.stdout
    broken = start.isin(["3", "4"]).sum()
    assert f"0 corrected, {broken} broken; McNemar's exact test" in done.stdout
    assert "The same model." in done.stdout  # resnet34 does not depend on lr here
    page = (repository.root / "metrics/compare.html").read_text()
    assert page.count("<img") >= broken

    repository.git("checkout", "--quiet", "--force", "HEAD")
    del repository.params["networks"]["resnet34"]
    repository.write_params()
    done = repository.run("folds.py", "--seed", "2")
    assert done.returncode == 0, done.stderr
    assert len(list((repository.root / "metrics/folds/models").iterdir())) == 6
    assert [path.name for path in (repository.root / "metrics/folds/networks").iterdir()] == ["resnet18.json"]
    done = repository.run("compare.py", "--folds")
    assert re.search(r"workspace +.*the folds' seed 2 instead of 1", done.stdout)

    lock = repository.root / "dvc.lock"
    content = yaml.safe_load(lock.read_text())
    [split] = [out for out in content["stages"]["prepare"]["outs"] if out["path"] == "data/prepared/split.csv"]
    split["md5"] = "0" * 32  # as if `prepare` had run again
    lock.write_text(yaml.safe_dump(content))
    assert error_line(repository.run("compare.py", "--folds")) == (
        "workspace is out of date: train@resnet18-1 ran with another data/prepared/split.csv; run `python "
        "tools/folds.py`"
    )
