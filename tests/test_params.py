"""params.yaml: every mistake in it is told in one line that names the key, before any work starts."""

import copy
import re
from pathlib import Path
from typing import Any

from catsdogs.errors import UserError
from catsdogs.params import read_params

import pytest
import yaml
from conftest import REPOSITORY, Project, error_line


@pytest.fixture
def params() -> dict:
    """The content of the repository's own params.yaml, to spoil; train.image_size sets prepare's no limit."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    content["train"]["image_size"] = 0
    return content


def place(params: dict, key: str) -> tuple[dict, str]:
    """The mapping that holds the dotted `key`, and the key's last part."""
    *sections, last = key.split(".")
    for section in sections:
        params = params[section]
    return params, last


def read(params: Any, folder: Path) -> Any:
    """What `read_params` makes of `params` (a text is written as it is)."""
    path = folder / "params.yaml"
    path.write_text(params if isinstance(params, str) else yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    return read_params(path)


def refusal(params: Any, folder: Path) -> str:
    """The one line with which `read_params` refuses `params`."""
    with pytest.raises(UserError) as caught:
        read(params, folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def every_key(section: dict, prefix: str = "") -> list[str]:
    """The dotted names of all keys, of sections and of single values."""
    keys = []
    for name, value in section.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += every_key(value, f"{prefix}{name}.")
    return keys


# --- what is valid


def test_the_repositorys_own_params_are_valid_and_read_as_they_stand() -> None:
    read_back = read_params(REPOSITORY / "params.yaml")
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    for key in every_key(params):
        section, last = place(params, key)
        value = read_back
        for part in key.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        if not isinstance(section[last], dict):
            assert value == section[last], key
            assert type(value) is type(section[last]), key


@pytest.mark.parametrize(
    ("written", "meant"),
    [("5e-4", 0.0005), ("'0.0005'", 0.0005), ("1E-3", 0.001), ("1", 1.0), ("5.0e-4", 0.0005), ("+2e-2", 0.02)],
)
def test_a_number_that_yaml_reads_as_text_is_still_that_number(written: str, meant: float, tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^lr: \S+", f"lr: {written}", text, flags=re.MULTILINE)
    lr = read(text, tmp_path).lr
    assert lr == meant
    assert type(lr) is float


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prepare.image_size", 32),
        ("prepare.image_size", 1024),
        ("prepare.split.test", 2),
        ("prepare.seed", 0),
        ("prepare.seed", 2**32 - 1),
        ("train.dropout", 0),
        ("train.head_width", 0),
        ("train.body_lr_factor", 1),
        ("train.crop_scale", 1),
        ("train.image_size", 224),
        ("train.lr_gamma", 1),
        ("train.batch_size", 2),
        ("networks", {"alexnet": {"weights": "none"}}),
    ],
)
def test_the_ends_of_a_range_belong_to_it(key: str, value: Any, params: dict, tmp_path: Path) -> None:
    section, last = place(params, key)
    section[last] = value
    read(params, tmp_path)


def test_each_choice_that_the_comments_offer_is_accepted(params: dict, tmp_path: Path) -> None:
    choices = {
        "precision": ["auto", "float32", "bfloat16"],
        "prepare.resize": ["squeeze", "center_crop"],
        "train.layers": ["head", "batchnorm", "last_half", "all"],
        "train.optimizer": ["adam", "sgd"],
        "train.augment": ["none", "flip", "crop_and_flip"],
        "ensemble.method": ["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"],
    }
    for key, values in choices.items():
        for value in values:
            spoilt = copy.deepcopy(params)
            section, last = place(spoilt, key)
            section[last] = value
            read(spoilt, tmp_path)


# --- what is not


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("source", 5, "text"),
        ("source", "", "text"),
        ("source", None, "text"),
        ("source", ["a.zip"], "text"),
        ("lr", 0, "above 0"),
        ("lr", -0.001, "above 0"),
        ("lr", True, "a number"),
        ("lr", "fast", "a number"),
        ("lr", None, "a number"),
        ("lr", [0.1], "a number"),
        ("lr", float("nan"), "a number"),
        ("lr", float("inf"), "a number"),
        ("lr", "nan", "a number"),
        ("precision", "float16", "auto, float32, bfloat16"),
        ("precision", ["auto"], "auto, float32, bfloat16"),
        ("prepare", None, "a mapping"),
        ("prepare", 3, "a mapping"),
        ("prepare.image_size", 31, "32 or more and at most 1024"),
        ("prepare.image_size", 1025, "32 or more and at most 1024"),
        ("prepare.image_size", 224.5, "a whole number"),
        ("prepare.image_size", True, "a whole number"),
        ("prepare.resize", "stretch", "squeeze, center_crop"),
        ("prepare.resize", True, "squeeze, center_crop"),
        ("prepare.split", [8, 4, 4], "a mapping"),
        ("prepare.split.train", 0, "1 or more"),
        ("prepare.split.train", -2, "1 or more"),
        ("prepare.split.train", 7, "even"),
        ("prepare.split.validation", 7, "even"),
        ("prepare.split.test", 7, "even"),
        ("prepare.seed", -1, "0 or more"),
        ("prepare.seed", 2**32, "4.29497e+09"),
        ("networks", None, "a mapping"),
        ("networks", {}, "at least one"),
        ("networks", ["resnet18"], "a mapping"),
        ("networks.resnet18", None, "a mapping"),
        ("networks.resnet18", "none", "a mapping"),
        ("networks.resnet18.weights", None, "text"),
        ("networks.resnet18.weights", False, "text"),
        ("train.layers", "some", "head, batchnorm, last_half, all"),
        ("train.head_width", -1, "0 or more"),
        ("train.dropout", 1, "at most 0.99"),
        ("train.dropout", -0.1, "0 or more"),
        ("train.optimizer", "lion", "adam, sgd"),
        ("train.momentum", 1, "at most 0.9999"),
        ("train.lr_step_size", 0.5, "a whole number"),
        ("train.lr_gamma", 0, "above 0"),
        ("train.lr_gamma", 1.1, "at most 1"),
        ("train.body_lr_factor", 0, "above 0"),
        ("train.crop_scale", 0, "above 0"),
        ("train.image_size", -1, "0 or more"),
        ("train.image_size", 225, "at most prepare.image_size, 224"),
        ("train.augment", True, "one of none, flip, crop_and_flip"),
        ("test_time_flip", "yes", "true or false"),
        ("test_time_flip", 1, "true or false"),
        ("train.batch_size", 1, "2 or more"),
        ("train.epochs", 0, "1 or more"),
        ("train.epochs", "many", "a whole number"),
        ("ensemble.method", "median", "mean_logits, mean_probabilities"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_with_what_was_expected(
    key: str, value: Any, expected: str, params: dict, tmp_path: Path
) -> None:
    section, last = place(params, key)
    section[last] = value
    text = refusal(params, tmp_path)
    assert text.startswith(f"params.yaml: {key} is {value!r}; expected ")
    assert expected in text.partition("; expected ")[2]


def test_every_missing_key_is_named(params: dict, tmp_path: Path) -> None:
    for key in every_key(params):
        if re.fullmatch(r"networks\.\w+", key):
            continue  # a network less is no mistake
        spoilt = copy.deepcopy(params)
        section, last = place(spoilt, key)
        del section[last]
        assert refusal(spoilt, tmp_path) == f"params.yaml: the key {key} is missing"


@pytest.mark.parametrize("section", ["", "prepare.", "prepare.split.", "networks.resnet18.", "train.", "ensemble."])
def test_an_unknown_key_is_named_with_the_known_ones(section: str, params: dict, tmp_path: Path) -> None:
    holder, last = place(params, f"{section}epoch")
    known = ", ".join(holder)
    holder[last] = 3
    assert refusal(params, tmp_path) == f"params.yaml: unknown key {section}epoch; known here: {known}"


@pytest.mark.parametrize("text", ["", "# only a remark\n", "---\n", "- a\n- b\n", "just words\n", "7\n", "null\n"])
def test_a_file_that_holds_no_mapping_is_refused_with_the_keys_it_should_have(text: str, tmp_path: Path) -> None:
    told = refusal(text, tmp_path)
    assert told.startswith("params.yaml: the file is ")
    assert told.endswith(
        "expected a mapping with the keys source, lr, precision, test_time_flip, launcher, prepare, networks, train, "
        "ensemble"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("source: a.zip\nlr: [1, 2\nprecision: auto\n", 3),
        ("source: a.zip\nprepare:\n\timage_size: 32\n", 3),
        ("source: 'a.zip\n", 2),
        ("source: a.zip\n  lr: 1\n", 2),
        ("source: a: b\n", 1),
        ("<<<<<<< HEAD\nlr: 1\n=======\nlr: 2\n>>>>>>> other\n", 2),
        ("source: a.zip\nlr: *nowhere\n", 2),
    ],
)
def test_broken_yaml_is_refused_with_the_line(text: str, line: int, tmp_path: Path) -> None:
    assert re.match(rf".*params\.yaml, line {line}: not valid YAML: \w", refusal(text, tmp_path))


@pytest.mark.parametrize("content", [b"source: \xff\xfe.zip\n", b"source: a\x00.zip\n", b"source: 2024-13-45\n"])
def test_bytes_that_are_no_yaml_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        read_params(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["lr", "prepare.seed"])
def test_a_number_beyond_all_measure_is_named_with_its_key(key: str, params: dict, tmp_path: Path) -> None:
    section, last = place(params, key)
    section[last] = 10**400
    assert refusal(params, tmp_path).startswith(f"params.yaml: {key} is 1000")


# --- as the user sees it


def test_a_stage_refuses_wrong_params_before_any_work(project: Project) -> None:
    # There are no photos either, but params.yaml comes first; and a mistake in a section of other stages counts.
    project.params["train"]["epochs"] = True
    project.write_params()
    text = error_line(project.run("prepare.py"))
    assert text == "params.yaml: train.epochs is True; expected a whole number, 1 or more"
    assert list(project.results()) == []


def test_a_stage_without_params_tells_where_to_run_it(project: Project) -> None:
    text = error_line(project.run("prepare.py"))
    assert "params.yaml" in text
    assert str(project.root) in text
    assert list(project.root.iterdir()) == []
