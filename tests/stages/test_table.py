"""The table of labels: what spreadsheets and labelling tools write is read, or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import prepare
from pipeline.core.errors import UserError
from tests.support.photos import photo_bytes
from tests.support.projects import Project, error_line

import pytest

Prepare = Callable[[str | bytes], dict[str, str]]

NAMES = [f"{number}.png" for number in range(16)]
LABELS = dict(zip(NAMES, ["cat"] * 8 + ["dog"] * 8, strict=True))
PLAIN = "".join(f"{name},{label}\n" for name, label in LABELS.items())


def rows(pattern: str) -> str:
    """A line for each photo: `pattern` with its name, number, label, and 0 or 1 for each class."""
    return "".join(
        pattern.format(name=name, number=number, label=label, cat=int(label == "cat"), dog=int(label == "dog")) + "\n"
        for number, (name, label) in enumerate(LABELS.items())
    )


@pytest.fixture
def labels_by(project: Project, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares photos that nothing labels but the table, and gives the labels that it found."""
    project.photos({name: photo_bytes(label, number) for number, (name, label) in enumerate(LABELS.items())}, "photos")
    project.split(train=8, validation=4, test=4)
    project.write_params()
    monkeypatch.chdir(project.root)
    monkeypatch.setattr("sys.argv", ["prepare.py"])

    def labels_by(table: str | bytes) -> dict[str, str]:
        content = table.encode() if isinstance(table, str) else table
        Path("data/labels.csv").write_bytes(content)
        prepare.main()
        return {row["photo"]: row["label"] for row in project.split_table()}

    return labels_by


@pytest.mark.parametrize(
    "table",
    [
        pytest.param("PHOTO,Label\n" + PLAIN + "3.png,cat\n", id="a row twice"),
        pytest.param("photo,label\n" + PLAIN.replace(".png", ".PNG"), id="suffix in upper case"),
        pytest.param("photo,label\n" + PLAIN.replace("\n", "\n,\n\n"), id="blank rows"),
        pytest.param("photo;label\r" + PLAIN.replace(",", ";").replace("\n", "\r"), id="lines of an old Mac"),
        pytest.param("sep=;\nphoto;label\n" + PLAIN.replace(",", ";"), id="Excel's delimiter"),
        pytest.param(("Photo\tLabel\r\n" + PLAIN.replace(",", "\t")).encode("utf-16"), id="Excel's Unicode text"),
        pytest.param('"photo", "label"\n' + rows('"{name}", "{label}"'), id="space before quotes"),
        pytest.param("photo,label\n" + rows("/home/me/pets/{name},{label}"), id="absolute paths"),
        pytest.param("photo,label\n" + rows("C:\\Users\\me\\pets\\{name},{label}"), id="paths of Windows"),
        pytest.param("photo,label\n" + rows("./{number},{label}"), id="no suffix"),
        pytest.param("id,image,choice\n" + rows("{number},/data/upload/7/0a1b2c3d-{name},{label}"), id="Label Studio"),
        pytest.param("image,choice\n" + rows("/data/local-files/?d=a/{name},{label}"), id="Label Studio's local files"),
        pytest.param("filename, cat, dog\n" + rows("{name}, {cat}, {dog}"), id="Roboflow's classes"),
        pytest.param("image,width,cat,dog\n" + rows("{name},640,{cat}.0,{dog}.0"), id="classes and other columns"),
        pytest.param("photo,label,notes\n" + rows('{name},{label},"two\nlines, with a comma"'), id="notes in lines"),
        pytest.param("photo,label,notes\n" + rows('{name},{label},5" tall'), id="inches"),
        pytest.param(f"photo,label,notes\n{PLAIN[:9]},{'x' * 140_000}\n{PLAIN[10:]}", id="a long cell"),
    ],
)
def test_prepare_reads_tables_as_they_are_written(table: str | bytes, labels_by: Prepare) -> None:
    assert labels_by(table) == LABELS


def test_a_table_may_leave_out_suffixes_of_names_with_dots(project: Project) -> None:
    names = {"Dr. Who": "cat", "IMG.A1": "dog"} | {f"{label}.B{n}": label for n in range(7) for label in ("cat", "dog")}
    project.photos({f"{name}.jpg": photo_bytes(label, n) for n, (name, label) in enumerate(names.items())}, "photos")
    project.split(train=8, validation=4, test=4)
    table = "".join(f"{name},{label}\n" for name, label in names.items())
    project.write_params()
    (project.root / "data/labels.csv").write_text(f"photo,label\n{table}")
    project.prepare()
    assert {row["photo"].removesuffix(".jpg"): row["label"] for row in project.split_table()} == names


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "photo,label\n" + PLAIN + "3.png,dog\n",
            ": the label of 3.png is 'cat' in line 5, but 'dog' in line 18; delete one of the two",
        ),
        (
            "photo,label,split\n" + rows("{name},{label},a") + "3.png,cat,b\n",
            ": the split of 3.png is 'a' in line 5, but 'b' in line 18; delete one of the two",
        ),
        (
            "photo,label\n" + PLAIN + '3.png,"cat,dog"\n',
            ", line 18: the label of 3.png is 'cat,dog'; expected one label",
        ),
        ("photo,label\n" + PLAIN + "3.png,cat,dog\n", ", line 18: 3 cells, but 2 columns; expected one label"),
        ("photo,label\n" + PLAIN + '3.png,"cat,new"\n', ", line 18: the label of 3.png is 'cat,new'; expected one"),
        ('[{"photo": "0.png"}]', " is JSON; expected CSV with columns photo, label and perhaps split"),
        ("photo,label\n" + PLAIN + "3.png,[cat]\n", ", line 18: the label of 3.png is '[cat]'; expected one label"),
        ("photo,label\n" + rows('{name},"{label}\nbig"'), ", line 2: the label of 0.png is 'cat\\nbig'; expected one"),
        ("photo,label\n" + PLAIN + ",cat\n", ", line 18: no photo is named; add its name, or delete the line"),
        ("photo,label\n" + PLAIN + "3.png,\n", ", line 18: 3.png has no label; add it, or delete the line"),
        ("file,cat,dog\n" + rows("{name},{cat},1"), ", line 2: 0.png is cat and dog; expected one label"),
        ("file,cat,dog\n" + rows("{name},{cat},0"), ", line 10: 8.png has no label; add it, or delete the line"),
        (
            "file,dog\n" + rows("{name},{dog}"),
            ", line 1: columns are file, dog; expected photo, label and perhaps split",
        ),
        ("photo,label\n" + PLAIN + "16.png,dog\n", "1 of 17 photos are not in the source, such as 16.png; expected"),
        (
            'photo,label,notes\n0.png,cat,"5 foot\n' + PLAIN[10:],
            ", line 2: a quotation mark is not closed, or text follows the closing one; close it, or remove it",
        ),
        (
            'photo,label,notes\n0.png,cat,"5 foot\n1.png,cat,6 foot"\n' + PLAIN[20:],
            ", line 2: a quoted cell contains the line of 1.png; close the quotation marks before it",
        ),
        ("photo,label\n".encode("utf-16-le"), " is not UTF-8 text; save it as CSV in UTF-8"),
        ("photo,label\n0.png,Käfer\n".encode("cp1252"), " is not UTF-8 text; save it as CSV in UTF-8"),
    ],
)
def test_prepare_refuses_what_a_table_does_not_say_clearly(table: str | bytes, said: str, labels_by: Prepare) -> None:
    with pytest.raises(UserError) as caught:
        labels_by(table)
    assert str(caught.value).startswith("data/labels.csv")
    assert said in str(caught.value)
    assert not Path("data/prepared").exists()


def test_prepare_does_not_take_a_photo_of_another_folder_for_the_one_in_the_table(project: Project) -> None:
    project.photos({f"photos/train/{name}": photo_bytes("cat", 0) for name in NAMES}, "photos")
    project.write_params()
    (project.root / "data/labels.csv").write_text("photo,label\nval/3.png,cat\n")
    text = error_line(project.run("prepare.py"))
    assert text.startswith(
        "data/labels.csv: 1 of 1 photos are not in the source, such as val/3.png; expected names such"
    )


def test_prepare_finds_a_photo_by_its_path_even_if_another_path_ends_with_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"cat/{n}.png": photo_bytes("cat", n) for n in range(8)} | {"8.png": photo_bytes("dog", 8)}
    project.photos(files | {f"dog/{n}.png": photo_bytes("dog", n) for n in range(8, 16)}, "photos")
    project.params["prepare"]["source"] = "photos"
    project.write_params()
    (project.root / "data/labels.csv").write_text("photo,label\n8.png,dog\n")
    assert project.prepare().returncode == 0
    assert project.row_of("8.png")["label"] == "dog"
