"""The tables that grow while a network trains."""

import os
from pathlib import Path

from pipeline.networks.live import LiveTables

import pytest

ROWS = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 4e-06}]


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    """The paths of two tables; a result of an earlier run is at the first one, a read-only link to DVC's cache."""
    (tmp_path / "cache").write_text("earlier\n")
    (tmp_path / "cache").chmod(0o444)
    (tmp_path / "curves").mkdir()
    os.link(tmp_path / "cache", tmp_path / "curves/a.csv")
    return [tmp_path / "curves/a.csv", tmp_path / "steps/a.csv"]


def contents(tables: list[Path]) -> list[str | None]:
    """What is at the paths of the tables. Nothing else is in their folders."""
    assert {path for table in tables for path in table.parent.glob("*")} <= {*tables}
    return [path.read_text() if path.exists() else None for path in tables]


def test_tables_grow_by_the_rows_they_lack_and_results_replace_them(tables: list[Path]) -> None:
    with LiveTables(*tables) as live:
        assert [path.read_text() for path in tables] == ["", ""]  # the run has begun
        live.follow([], ROWS[:1])
        assert [path.read_text() for path in tables] == ["", "step,loss\n1,0.5\n"]
        live.follow(ROWS[:1], ROWS)
        assert [path.read_text() for path in tables] == ["step,loss\n1,0.5\n", "step,loss\n1,0.5\n2,4e-06\n"]
        for path in tables:
            path.write_text("result\n")
    assert contents(tables) == ["result\n", "result\n"]
    assert (tables[0].parents[1] / "cache").read_text() == "earlier\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_run_that_does_not_finish_leaves_the_earlier_result(tables: list[Path], error: type[BaseException]) -> None:
    with pytest.raises(error), LiveTables(*tables) as live:
        live.follow(ROWS, ROWS)
        raise error
    assert contents(tables) == ["earlier\n", None]
    assert tables[0].stat().st_nlink == 2  # still a link to the cache


def test_a_killed_run_loses_no_earlier_result(tables: list[Path]) -> None:
    tables = tables[:1]
    killed = LiveTables(*tables).__enter__()
    killed.follow(ROWS)
    assert tables[0].read_text() != "earlier\n"
    with pytest.raises(ValueError, match="the next one fails"), LiveTables(*tables) as live:
        live.follow(ROWS[:1])
        assert tables[0].read_text() == "step,loss\n1,0.5\n"
        raise ValueError("the next one fails")
    assert contents(tables) == ["earlier\n"]


def test_a_full_disk_ends_the_growth_but_not_the_training(
    tables: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with LiveTables(*tables) as live:
        live.follow(ROWS[:1], ROWS[:1])
        monkeypatch.setattr("pipeline.networks.live.csv.DictWriter", full)
        live.follow(ROWS, ROWS)
        live.follow(ROWS, ROWS)
        assert contents(tables) == ["earlier\n", None]
    assert capsys.readouterr().err == (
        "warning: No space left on device; the curves of this training run do not grow\n"
    )


def test_only_the_first_process_has_tables(tmp_path: Path) -> None:
    with LiveTables() as live:
        live.follow(ROWS, ROWS)
    assert not list(tmp_path.iterdir())
