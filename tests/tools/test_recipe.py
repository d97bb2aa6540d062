"""Recipes: the files, tools/recipe.py, which applies them to params.yaml, and the default from photos to report."""

import shutil
from pathlib import Path

from pipeline.core.all_params import Params
from pipeline.core.params import flatten
from pipeline.core.read_params import read_params
from pipeline.editing.recipes import read_recipe, recipe_names
from tests.support.photos import kaggle_files
from tests.support.projects import REPOSITORY, Project, error_line
from tests.support.weight_files import write_weights

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

RECIPES = REPOSITORY / "recipes"
NAMES = recipe_names(RECIPES)
PARAMS = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
DEFAULT = read_recipe("default", RECIPES)


def values_in(path: Path) -> dict:
    """The values in a YAML file by dotted key."""
    return dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))


@pytest.fixture
def own(project: Project) -> Project:
    """A project with the repository's own params.yaml and recipes."""
    shutil.copy(REPOSITORY / "params.yaml", project.root)
    shutil.copytree(RECIPES, project.root / "recipes")
    return project


def apply(project: Project, *arguments: str) -> str:
    """Run tools/recipe.py, which must succeed; returns its stdout."""
    done = project.run("recipe.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- the files


def test_the_default_recipe_has_the_values_in_params_yaml() -> None:
    own = values_in(REPOSITORY / "params.yaml")
    assert {key: own[key] for key in DEFAULT} == DEFAULT


@pytest.mark.parametrize("name", [name for name in NAMES if name != "default"])
def test_a_recipe_has_only_what_differs_from_the_default(name: str) -> None:
    values = values_in(RECIPES / f"{name}.yaml")
    assert [key for key, value in values.items() if DEFAULT[key] == value] == []


def test_every_recipe_is_described_on_the_page_about_recipes() -> None:
    page = (REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"\n| {name} | " in page
        assert (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


# --- tools/recipe.py


@pytest.mark.parametrize("name", NAMES)
def test_recipe_gives_valid_params_whatever_was_applied_before_and_keeps_comments(name: str, own: Project) -> None:
    apply(own, "pytorch-tutorial" if name != "pytorch-tutorial" else "best")
    apply(own, name)
    path = own.root / "params.yaml"
    read_params(Params, path)
    assert values_in(path) == values_in(REPOSITORY / "params.yaml") | read_recipe(name, RECIPES)
    comments = [line.partition("#")[2] for line in PARAMS.splitlines()]
    assert [line.partition("#")[2] for line in path.read_text(encoding="utf-8").splitlines()] == comments
    apply(own, "default")
    assert path.read_text(encoding="utf-8") == PARAMS


def test_recipe_prints_what_it_changes_and_with_diff_changes_nothing(own: Project) -> None:
    path = own.root / "params.yaml"
    path.write_text(PARAMS.replace("label_smoothing: 0.05", "label_smoothing: 0.1").replace("seed: 1", "seed: 7"))
    before = path.read_bytes()
    changes = [
        "  lr: 0.0025 -> 0.001",
        "  prepare.resize: center_crop -> stretch",
        "  train.backbone_lr_factor: 1.0 -> 0.1",
        "  train.head_init: fitted -> random",
        "  train.head_width: null -> 512",
        "  train.optimizer: sgd -> adam",
        "  train.label_smoothing: 0.1 -> 0.0",
        "  train.epochs: 6 -> 3",
        "  evaluate.test_time_flip: true -> false",
    ]
    files = "recipes/default.yaml, then recipes/two-layer.yaml"
    assert apply(own, "two-layer", "--diff").splitlines() == [f"{files} would change params.yaml:", *changes]
    assert path.read_bytes() == before
    first, *others, last = apply(own, "two-layer").splitlines()
    assert [first, *others] == [f"{files} changed params.yaml:", *changes]
    assert "`dvc exp run --name two-layer`" in last
    assert values_in(path)["train.seed"] == 7
    assert apply(own, "two-layer", "--diff") == "params.yaml already has recipe two-layer\n"
    assert apply(own, "test-time-flip", "--diff").splitlines()[1:] == ["  evaluate.test_time_flip: false -> true"]


def test_a_recipe_gives_single_networks_what_it_has_for_them_and_takes_it_from_those_of_another(own: Project) -> None:
    path = own.root / "params.yaml"
    path.write_text(PARAMS.replace("  resnet34: {weights: IMAGENET1K_V1}\n", "  mobilenet_v2: {weights: none}\n"))
    without = path.read_text()
    (own.root / "recipes/mine.yaml").write_text("networks: {mobilenet_v2: {train: {epochs: 2}}, vgg11: {lr: 1.0}}\n")
    assert apply(own, "default").splitlines()[1:-1] == [
        "  networks.mobilenet_v2.lr: not set -> 0.0001",
        "  networks.mobilenet_v2.train.batchnorm_statistics: not set -> fixed",
        "  networks.mobilenet_v2.train.optimizer: not set -> adam",
        "  networks.mobilenet_v2.train.label_smoothing: not set -> 0.0",
    ]
    assert "  mobilenet_v2:\n    weights: none\n    lr: 0.0001\n    train:\n" in path.read_text()
    apply(own, "mine")
    assert yaml.safe_load(path.read_text())["networks"]["mobilenet_v2"] == {"weights": "none", "train": {"epochs": 2}}
    (own.root / "recipes/default.yaml").write_text((RECIPES / "default.yaml").read_text().partition("\nnetworks:")[0])
    apply(own, "default")
    assert path.read_text() == without


def test_a_recipe_leaves_networks_alone_whose_weights_another_one_repeats(own: Project) -> None:
    path = own.root / "params.yaml"
    path.write_text(
        PARAMS.replace("resnet18: {weights: IMAGENET1K_V1}", "resnet18: &w {weights: none}").replace(
            "resnet34: {weights: IMAGENET1K_V1}", "mobilenet_v2: *w  # mine"
        )
    )
    (own.root / "recipes/mine.yaml").write_text("networks: {mobilenet_v2: {lr: 0.5}}\n")
    apply(own, "mine")
    networks = yaml.safe_load(path.read_text())["networks"]
    assert networks == {"resnet18": {"weights": "none"}, "mobilenet_v2": {"weights": "none", "lr": 0.5}}


def test_recipe_lists_all_with_the_comment_at_the_top_of_each(own: Project) -> None:
    (own.root / "recipes/mine.yaml").write_text("# For my\n# photos.\n\n# Not this.\nlr: 0.5\n")
    printed = apply(own, "--list")
    names = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert names == ["default", *sorted([*NAMES[1:], "mine"])]
    assert "\nmine              For my photos.\n" in printed
    assert (own.root / "params.yaml").read_text(encoding="utf-8") == PARAMS


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ("lr: 5e-4\ntrain:\n  layer: all\n", "recipes/mine.yaml: train.layer is not in recipes/default.yaml; correct"),
        ("ensemble: {method: majority_vote}\n", "recipes/mine.yaml: ensemble.method is not in recipes/default.yaml; "),
        ("train: all\n", "recipes/mine.yaml: train is not in recipes/default.yaml; "),
        ("# nothing\n", "recipes/mine.yaml has no params; expected keys of params.yaml with their values, such as "),
        ("networks: {vgg11: {weights: none}}\n", "recipes/mine.yaml: networks.vgg11 is {'weights': 'none'}; expected "),
        ("networks: vgg11\n", "recipes/mine.yaml: networks.NETWORK is 'vgg11'; expected values of lr and train for "),
        (
            "networks: {resnet18: {train: {epochs: many}}}\n",
            "recipe mine cannot be applied: networks.resnet18.train.epochs is 'many'; ",
        ),
        ("lr: 1\nlr: 2\n", "recipes/mine.yaml: lr is in lines 1 and 2; delete one of the two"),
        ("train:\n  epochs: 010\n", "recipes/mine.yaml, line 2: YAML reads 010 as 8; "),
        ("lr: [\n", "recipes/mine.yaml, line 2: not valid YAML: "),
        ("train: {epochs: many}\n", "recipe mine cannot be applied: train.epochs is 'many'; "),
        ("train: {batch_size: 20000}\n", "recipe mine cannot be applied: train.batch_size is 20000; expected at most "),
        (
            "train: {head_width: 9}\n",
            "recipe mine cannot be applied: train.head_width is 9; expected null, a linear head",
        ),
    ],
)
def test_recipe_refuses_a_wrong_recipe_in_one_line_and_changes_nothing(recipe: str, line: str, own: Project) -> None:
    (own.root / "recipes/mine.yaml").write_text(recipe)
    assert error_line(own.run("recipe.py", "mine")).startswith(line)
    assert (own.root / "params.yaml").read_text(encoding="utf-8") == PARAMS


def test_recipe_names_an_unknown_recipe_a_key_that_params_yaml_lacks_and_a_wrong_params_yaml(own: Project) -> None:
    assert error_line(own.run("recipe.py", "bset")) == f"there is no recipe bset; expected one of {', '.join(NAMES)}"
    default = own.root / "recipes/default.yaml"
    default.write_text(default.read_text().replace("lr:", "rate:", 1))
    (own.root / "recipes/mine.yaml").write_text("rate: 1\n")
    assert error_line(own.run("recipe.py", "mine")).startswith("recipes/default.yaml: unknown key rate; expected one ")
    (own.root / "params.yaml").write_text(PARAMS.replace("lr: 0.0025", "lr: fast"))
    assert error_line(own.run("recipe.py", "mine")).startswith("params.yaml: lr is 'fast'; ")
    shutil.rmtree(own.root / "recipes")
    (own.root / "params.yaml").write_text(PARAMS)
    assert error_line(own.run("recipe.py", "best")) == (
        f"recipes/default.yaml does not exist in {own.root}; run this from the project's root"
    )


# --- the default, as a whole


@pytest.mark.slow
def test_the_default_runs_from_photos_to_report_with_a_fitted_head(project: Project) -> None:
    """params.yaml as it is, except for the sizes, the epochs and the pretrained weights, which are random."""
    project.params = yaml.safe_load(PARAMS)
    project.params["prepare"]["image_size"], project.params["train"]["image_size"] = 40, 32
    project.params["train"]["epochs"] = 2
    project.split(train=64, validation=16, test=16)
    for name, network in project.params["networks"].items():
        network["weights"] = write_weights(project.root, name).name
    project.photos(kaggle_files(cats=48, dogs=48))
    shutil.copy(REPOSITORY / "dvc.yaml", project.root)  # whose stages the report shows
    stages = ("prepare", "train resnet18", "train resnet34", "evaluate", "ensemble", "reject", "report")
    for stage in stages:
        script, *network = stage.split()
        project.succeed(f"{script}.py", *network)
    scores = pd.read_csv(project.root / "metrics/scores/networks.csv").set_index(["network", "split"])
    kept_by = {}
    for name in ("resnet18", "resnet34"):
        curve = pd.read_csv(project.root / f"metrics/curves/{name}.csv")
        assert curve["epoch"].tolist() == [0, 1, 2]
        assert curve.loc[0, "validation_accuracy"] == 1  # the photos are easy
        kept = curve.loc[curve["kept"], "epoch"].tolist()
        kept_epoch = project.read_json(f"metrics/networks/{name}.json")["kept_epoch"]
        mean = "the mean of epochs 0 (the fitted head) and 2, weighted "
        means = {f"0+2 ({weighting})": f"{mean}{weighting}" for weighting in ("3:1", "1:1", "1:3")}
        texts = means if len(kept) == 2 else {0: "the fitted head", 2: "epoch 2 of 2"}
        kept_by[name] = texts[kept_epoch]
        assert len(kept) == 2 or kept == [kept_epoch]
        assert scores.loc[(name, "test"), "accuracy"] == 1
        assert (
            len(load_file(project.root / f"models/networks/{name}.safetensors")["fc.0.weight"]) == 2
        )  # one linear layer
    ensemble = pd.read_csv(project.root / "metrics/scores/ensemble.csv").set_index("split")
    assert ensemble.loc["test", "accuracy"] == 1
    page = (project.root / "metrics/report.html").read_text(encoding="utf-8")
    for name, kept in kept_by.items():
        assert f"{name}: {kept}" in page
    assert "epoch 0 (the network before training, with a fitted head)" in page  # with random weights, too
