"""params.yaml: each mistake in it is one line that names the key, before any work starts."""

import copy
import re
from pathlib import Path
from typing import Any

from pipeline.core.all_params import Params, without_folders
from pipeline.core.errors import UserError
from pipeline.core.read_params import read_params
from tests.support.projects import REPOSITORY, Project, error_line

import pytest
import yaml

OLD_VALUES = {
    ("prepare.resize", "squeeze"): "stretch",
    ("train.head_width", 0): "null",
    ("train.lr_step_size", 0): "null",
    ("train.image_size", 0): "null",
    ("reject.false_rejection_rate", 0): "null",
}


@pytest.fixture
def params() -> dict:
    """The content of the repository's own params.yaml, to be changed; train.image_size does not limit prepare's."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    content["train"]["image_size"] = None
    return content


def place(params: dict, key: str) -> tuple[dict, str]:
    """The mapping that holds the dotted `key`, and the last part of the key."""
    *sections, last = key.split(".")
    for section in sections:
        params = params[section]
    return params, last


def read(params: Any, folder: Path) -> Any:
    """The result of `read_params` for `params` (text is written unchanged)."""
    path = folder / "params.yaml"
    path.write_text(params if isinstance(params, str) else yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    return read_params(Params, path)


def refusal(params: Any, folder: Path) -> str:
    """The one line of the error that `read_params` raises for `params`."""
    with pytest.raises(UserError) as caught:
        read(params, folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_pages_name_photos_and_weights_without_their_folders(params: dict, tmp_path: Path) -> None:
    params["networks"] = {
        "resnet18": {"weights": "/home/me/resnet18-0123abcd.pth"},
        "resnet34": {"weights": "timm/resnet34.a1_in1k@0123abcd"},
        "mobilenet_v2": {"weights": "IMAGENET1K_V1"},
    }
    params["prepare"] |= {"source": "/home/me/photos", "labels": "../mine.csv"}
    shown = without_folders(read(params, tmp_path))
    assert [network.weights for network in shown.networks.values()] == [
        *("resnet18-0123abcd.pth", "timm/resnet34.a1_in1k@0123abcd", "IMAGENET1K_V1")
    ]
    assert (shown.prepare.source, shown.prepare.labels) == ("photos", "mine.csv")


def every_key(section: dict, prefix: str = "") -> list[str]:
    """The dotted names of all keys, of sections as well as of single values."""
    keys = []
    for name, value in section.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += every_key(value, f"{prefix}{name}.")
    return keys


# --- valid


def test_read_params_reads_the_repositorys_own_values_unchanged() -> None:
    read_back = read_params(Params, REPOSITORY / "params.yaml")
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    for key in every_key(params):
        section, last = place(params, key)
        value = read_back
        for part in key.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        if not isinstance(section[last], dict):
            written = tuple(section[last]) if isinstance(section[last], list) else section[last]
            assert value == written, key
            assert type(value) is type(written), key


@pytest.mark.parametrize(
    ("written", "meant"),
    [("5e-4", 0.0005), ("'0.0005'", 0.0005), ("1E-3", 0.001), ("1", 1.0), ("5.0e-4", 0.0005), ("+2e-2", 0.02)],
)
def test_read_params_accepts_numbers_that_yaml_reads_as_text(written: str, meant: float, tmp_path: Path) -> None:
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
        ("prepare.min_photos_per_class", 1),
        ("prepare.seed", 0),
        ("prepare.seed", 2**32 - 1),
        ("train.dropout", 0),
        ("train.backbone_lr_factor", 1),
        ("train.crop_scale", 1),
        ("train.image_size", 32),
        ("train.image_size", 224),
        ("train.lr_gamma", 1),
        ("train.batch_size", 2),
        ("reject.false_rejection_rate", 0.5),
        ("networks", {"alexnet": {"weights": "none"}}),
    ],
)
def test_read_params_accepts_the_ends_of_each_range(key: str, value: Any, params: dict, tmp_path: Path) -> None:
    section, last = place(params, key)
    section[last] = value
    read(params, tmp_path)


def test_read_params_accepts_each_choice_that_the_comments_offer(params: dict, tmp_path: Path) -> None:
    choices = {
        "device": ["auto", "cuda", "mps", "xpu", "cpu"],
        "precision": ["auto", "float32", "bfloat16"],
        "threads": ["auto", 1],
        "prepare.resize": ["stretch", "center_crop"],
        "train.layers": ["head", "batchnorm", "last_half", "all"],
        "train.batchnorm_statistics": ["fixed", "updated"],
        "train.head_init": ["fitted", "random"],
        "train.optimizer": ["adam", "sgd"],
        "train.class_weights": ["none", "balanced"],
        "train.augment": ["none", "flip", "crop_and_flip"],
        "ensemble.method": ["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"],
    }
    for key, values in choices.items():
        for value in values:
            changed = copy.deepcopy(params)
            section, last = place(changed, key)
            section[last] = value
            read(changed, tmp_path)


# --- not valid


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("prepare.source", 5, "expected text; put it in quotes"),
        ("prepare.source", "", "at least 1 character"),
        ("prepare.source", None, "expected text"),
        ("prepare.source", ["a.zip"], "expected text"),
        ("lr", 0, "greater than 0"),
        ("lr", -0.001, "greater than 0"),
        ("lr", True, "expected a number"),
        ("lr", "fast", "a valid number"),
        ("lr", None, "a valid number"),
        ("lr", [0.1], "a valid number"),
        ("lr", float("nan"), "a finite number"),
        ("lr", float("inf"), "a finite number"),
        ("lr", "nan", "a finite number"),
        ("precision", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("precision", ["auto"], "'auto', 'float32' or 'bfloat16'"),
        ("threads", 0, "auto, or a number from 1 to 1024"),
        ("threads", True, "auto, or a number from 1 to 1024"),
        ("prepare", None, "expected the keys source, labels, image_size, resize, split, min_photos_per_class, seed"),
        ("prepare", 3, "expected the keys source, labels, image_size, resize, split, min_photos_per_class, seed"),
        ("prepare.image_size", 31, "greater than or equal to 32"),
        ("prepare.image_size", 1025, "less than or equal to 1024"),
        ("prepare.image_size", 224.5, "a valid integer"),
        ("prepare.image_size", True, "expected a number"),
        ("prepare.resize", "pad", "'stretch' or 'center_crop'"),
        ("prepare.resize", True, "'stretch' or 'center_crop'"),
        ("prepare.split", [8, 4, 4], "expected the keys train, validation, test"),
        ("prepare.split.train", 0, "2 photos or more, a share such as 0.2"),
        ("prepare.split.train", 1, "2 photos or more, a share such as 0.2"),
        ("prepare.split.train", -2, "2 photos or more, a share such as 0.2"),
        ("prepare.split.validation", 1.0, "2 photos or more, a share such as 0.2"),
        ("prepare.split.test", True, "2 photos or more, a share such as 0.2"),
        ("prepare.split.test", " ", "2 photos or more, a share such as 0.2"),
        ("classes", ["cat"], "auto, or a list of at least two different names"),
        ("classes", ["cat", "Cat "], "auto, or a list of at least two different names"),
        ("classes", ["cat", ""], "auto, or a list of at least two different names"),
        ("classes", None, "auto, or a list of at least two different names"),
        ("classes", 5, "auto, or a list of at least two different names"),
        ("classes", {"cat": 1, "dog": 2}, "auto, or a list of at least two different names"),
        ("classes", "cats", "auto, or a list of at least two different names"),
        ("classes", [["cat"], "dog"], "auto, or a list of at least two different names"),
        ("classes", [True, False], "put yes, no, on, off, null and numbers with a decimal point in quotes"),
        ("classes", [None, "dog"], "put yes, no, on, off, null and numbers with a decimal point in quotes"),
        ("classes", [1.1, 2.5], "put yes, no, on, off, null and numbers with a decimal point in quotes"),
        ("prepare.seed", -1, "greater than or equal to 0"),
        ("prepare.seed", 2**32, "less than or equal to 4294967295"),
        ("networks", None, "names of networks, each with its weights, such as resnet18: {weights: IMAGENET1K_V1}"),
        ("networks", {}, "at least 1 item"),
        ("networks", ["resnet18"], "names of networks, each with its weights"),
        ("networks.resnet18", None, "expected the keys weights"),
        ("networks.resnet18", "none", "expected the keys weights"),
        ("networks.resnet18.weights", None, "expected text"),
        ("networks.resnet18.weights", False, "expected text; put it in quotes"),
        ("train.layers", "some", "'head', 'batchnorm', 'last_half' or 'all'"),
        ("train.head_width", -1, "greater than or equal to 1"),
        ("train.dropout", 1, "less than or equal to 0.99"),
        ("train.dropout", -0.1, "greater than or equal to 0"),
        ("train.optimizer", "lion", "'adam' or 'sgd'"),
        ("train.class_weights", None, "'none' or 'balanced'"),
        ("train.class_weights", 2, "'none' or 'balanced'"),
        ("prepare.min_photos_per_class", 0, "greater than or equal to 1"),
        ("train.momentum", 1, "less than or equal to 0.9999"),
        ("train.lr_step_size", 0.5, "a valid integer"),
        ("train.lr_gamma", 0, "greater than 0"),
        ("train.lr_gamma", 1.1, "less than or equal to 1"),
        ("train.backbone_lr_factor", 0, "greater than 0"),
        ("train.crop_scale", 0, "greater than 0"),
        ("train.image_size", -1, "greater than or equal to 32"),
        ("train.image_size", 31, "greater than or equal to 32"),
        ("train.image_size", 1025, "less than or equal to 1024"),
        ("train.image_size", 225, "at most prepare.image_size (224)"),
        ("train.augment", True, "'none', 'flip' or 'crop_and_flip'"),
        ("evaluate.test_time_flip", "yes", "a valid boolean"),
        ("evaluate.test_time_flip", 1, "a valid boolean"),
        ("train.batch_size", 1, "greater than or equal to 2"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.epochs", "many", "a valid integer"),
        ("ensemble.method", "median", "'mean_logits', 'mean_probabilities'"),
        ("reject.false_rejection_rate", 1, "less than or equal to 0.5"),
        *((key, value, f"this is now called {new}") for (key, value), new in OLD_VALUES.items()),
    ],
)
def test_read_params_names_a_wrong_value_with_its_key_and_what_was_expected(
    key: str, value: Any, expected: str, params: dict, tmp_path: Path
) -> None:
    section, last = place(params, key)
    section[last] = value
    text = refusal(params, tmp_path)
    assert text.startswith(f"params.yaml: {key} is {'empty' if value is None else repr(value)}; ")
    assert expected in text.partition("; ")[2]


def test_read_params_names_each_missing_key(params: dict, tmp_path: Path) -> None:
    for key in every_key(params):
        if re.fullmatch(r"networks\.\w+", key):
            continue  # fewer networks are no mistake
        changed = copy.deepcopy(params)
        section, last = place(changed, key)
        del section[last]
        assert refusal(changed, tmp_path) == f"params.yaml: the key {key} is missing"


@pytest.mark.parametrize(
    "section", ["", "prepare.", "prepare.split.", "networks.resnet18.", "train.", "evaluate.", "ensemble."]
)
def test_read_params_names_an_unknown_key(section: str, params: dict, tmp_path: Path) -> None:
    holder, last = place(params, f"{section}epoch")
    holder[last] = 3
    assert refusal(params, tmp_path) == f"params.yaml: unknown key {section}epoch; remove it or correct its name"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"lr": 0}, "lr is 0; input should be greater than 0"),
        ({"lr": None}, "lr is empty; expected a number; remove the key to use the value for all networks"),
        ({"train": 3}, "train is 3; expected values of train for this network, such as {optimizer: adam}"),
        ({"train": {"epochs": "many"}}, "train.epochs is 'many'; input should be a valid integer"),
        ({"train": {"image_size": 225}}, "train.image_size is 225; expected at most prepare.image_size (224)"),
        ({"train": {"batch_size": 20000}}, "train.batch_size is 20000; expected at most prepare.split.train (16000)"),
    ],
)
def test_read_params_checks_what_a_network_has_of_its_own(own: dict, said: str, params: dict, tmp_path: Path) -> None:
    params["networks"]["resnet18"] |= own
    assert refusal(params, tmp_path).startswith(f"params.yaml: networks.resnet18.{said}")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"train": {"epoch": 3}}, "unknown key networks.resnet18.train.epoch; remove it or correct its name"),
        ({"epochs": 3}, "unknown key networks.resnet18.epochs; expected networks.resnet18.train.epochs"),
        (
            {"train": {"seed": 3}},
            "networks.resnet18.train.seed cannot be set for one network; remove it, because all share train.seed",
        ),
        (
            {"train": {"head_width": 9}},
            "networks.resnet18.train.head_width is 9; expected null, a linear head, because train.head_init is fitted; "
            "or set train.head_init to random",
        ),
    ],
)
def test_read_params_names_a_wrong_key_of_a_network(own: dict, said: str, params: dict, tmp_path: Path) -> None:
    params["networks"]["resnet18"] |= own
    assert refusal(params, tmp_path) == f"params.yaml: {said}"


@pytest.mark.parametrize(
    ("old", "new"),
    [("train.body_lr_factor", "train.backbone_lr_factor"), ("reject.share", "reject.false_rejection_rate")],
)
def test_read_params_refuses_an_old_key_with_its_new_name(old: str, new: str, params: dict, tmp_path: Path) -> None:
    section, last = place(params, new)
    section[old.rpartition(".")[2]] = section.pop(last)
    assert refusal(params, tmp_path) == f"params.yaml: {old} is now called {new}; rename it"


def test_prepare_prints_a_line_for_each_mistake_in_params(params: dict, project: Project) -> None:
    params["lr"] = 0
    params["train"]["epochs"] = "many"
    del params["prepare"]["seed"]
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    done = project.run("prepare.py")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: params.yaml: lr is 0; input should be greater than 0",
        "error: params.yaml: the key prepare.seed is missing",
        "error: params.yaml: train.epochs is 'many'; input should be a valid integer, unable to parse string as an "
        "integer",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *(("", "empty"), ("# only a comment\n", "empty"), ("---\n", "empty"), ("null\n", "empty")),
        *(("- a\n- b\n", "['a', 'b']"), ("just words\n", "'just words'"), ("7\n", "7")),
    ],
)
def test_read_params_refuses_a_file_without_a_mapping(text: str, shown: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path) == (
        f"params.yaml: the file is {shown}; expected the keys classes, lr, device, precision, threads, networks, "
        "prepare, train, evaluate, ensemble, reject"
    )


def replaced(pattern: str, text: str) -> str:
    """The repository's own params.yaml, with what matches `pattern` replaced."""
    own = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    changed, count = re.subn(pattern, text, own, count=1, flags=re.MULTILINE)
    assert count == 1
    return changed


@pytest.mark.parametrize(
    ("pattern", "written", "said"),
    [
        (r"\[cat, dog\]", "[007, 010]", "007 as 7; put it in quotes, or write 7"),
        (r"\[cat, dog\]", "[12:30, dog]", "12:30 as 750; put it in quotes, or write 750"),
        (r"\[cat, dog\]", "[2024-01-31, dog]", "2024-01-31 as a date; put it in quotes"),
        (r"data/raw/train.zip", "1_000", "1_000 as 1000; put it in quotes, or write 1000"),
        (r"(?<=^lr: )\S+", "1:30.5", "1:30.5 as 90.5; put it in quotes, or write 90.5"),
        (r"(?<=train: )16000", "010", "010 as 8; put it in quotes, or write 8"),
        (r"(?<=epochs: )6", "0x10", "0x10 as 16; put it in quotes, or write 16"),
    ],
)
def test_read_params_refuses_what_yaml_changes(pattern: str, written: str, said: str, tmp_path: Path) -> None:
    text = replaced(pattern, written)
    line = text[: text.index(written)].count("\n") + 1
    assert refusal(text, tmp_path) == f"{tmp_path}/params.yaml, line {line}: YAML reads {said}"


def test_read_params_takes_classes_in_quotes_and_plain_numbers_as_they_are_written(tmp_path: Path) -> None:
    text = replaced(r"\[cat, dog\]", "['007', \"12:30\", 'null', 'yes', '1.10', 2024, 7]")
    assert read(text, tmp_path).classes == ("007", "12:30", "null", "yes", "1.10", "2024", "7")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("'0.6'", 0.6), ("6e-1", 0.6), ("0.6", 0.6), ("2024", 2024), ("'2024'", "2024"), ("val", "val")],
)
def test_read_params_takes_a_share_in_quotes_for_a_share(written: str, meant: object, tmp_path: Path) -> None:
    assert read(replaced(r"(?<=train: )16000", written), tmp_path).prepare.split.train == meant


@pytest.mark.parametrize(
    ("pattern", "text", "said"),
    [
        (r"^device:", "lr: 0.5\ndevice:", "lr is in lines 6 and 7"),
        (r"^evaluate:", "train:\n  epochs: 9\nevaluate:", "train is in lines 34 and 59"),
        (r"^  resnet34:", "  resnet18:", "resnet18 is in lines 18 and 19"),
    ],
)
def test_read_params_refuses_a_duplicate_key(pattern: str, text: str, said: str, tmp_path: Path) -> None:
    assert refusal(replaced(pattern, text), tmp_path) == f"{tmp_path}/params.yaml: {said}; delete one of the two"


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
def test_read_params_names_the_line_of_broken_yaml(text: str, line: int, tmp_path: Path) -> None:
    assert re.match(rf".*params\.yaml, line {line}: not valid YAML: \w", refusal(text, tmp_path))


@pytest.mark.parametrize("content", [b"source: \xff\xfe.zip\n", b"source: a\x00.zip\n", b"source: 2024-13-45\n"])
def test_read_params_refuses_bytes_that_are_not_yaml_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        read_params(Params, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["lr", "prepare.seed"])
def test_read_params_names_the_key_of_an_enormous_number(key: str, params: dict, tmp_path: Path) -> None:
    section, last = place(params, key)
    section[last] = 10**400
    assert refusal(params, tmp_path).startswith(f"params.yaml: {key} is 1000")


# --- as users see it


def test_prepare_refuses_wrong_params_before_any_work(project: Project) -> None:
    # The photos are missing too, but params.yaml comes first; mistakes in the sections of other stages count.
    project.params["train"]["epochs"] = True
    project.write_params()
    text = error_line(project.run("prepare.py"))
    assert text == "params.yaml: train.epochs is True; expected a number, not true or false"
    assert list(project.results()) == []


def test_prepare_without_params_says_where_to_run_it(project: Project) -> None:
    text = error_line(project.run("prepare.py"))
    assert "params.yaml" in text
    assert str(project.root) in text
    assert list(project.root.iterdir()) == []


def test_read_params_refuses_a_fitted_head_of_two_layers(params: dict, tmp_path: Path) -> None:
    params["train"] |= {"head_init": "fitted", "head_width": 512}
    assert refusal(params, tmp_path) == (
        "params.yaml: train.head_width is 512; expected null, a linear head, because train.head_init is fitted; or "
        "set train.head_init to random"
    )


def test_read_params_refuses_shares_of_more_than_everything(params: dict, tmp_path: Path) -> None:
    params["prepare"]["split"] = {"train": 0.7, "validation": 0.2, "test": 0.2}
    assert refusal(params, tmp_path) == (
        "params.yaml: the shares in prepare.split are 0.7 + 0.2 + 0.2; expected at most 1 in all"
    )
    params["prepare"]["split"] = {"train": 0.7, "validation": 0.2, "test": 0.1}
    read(params, tmp_path)
