"""Sizing: the arithmetic of docs/operation.md, its table, and the costs that it is built on."""

from pathlib import Path

import pytest

from bench import sizing
from bench.sizing import Cost, Load, Plan, main, size, table

PAGE = Path(__file__).parents[3] / "docs" / "operation.md"


def test_the_page_has_this_table() -> None:
    """The table of docs/operation.md is what the arithmetic gives now."""
    first, last = sizing.MARKS
    assert f"{first}\n{table(sizing.DOCS)}\n{last}" in PAGE.read_text()


def test_the_table_is_written_between_marks(tmp_path: Path) -> None:
    """--docs changes the table and nothing else."""
    page = tmp_path / "page.md"
    page.write_text("\n".join(["before", sizing.MARKS[0], "old", sizing.MARKS[1], "after"]))
    main(["--docs", str(page)])
    assert page.read_text() == "\n".join(["before", sizing.MARKS[0], table(sizing.DOCS), sizing.MARKS[1], "after"])


def test_by_hand() -> None:
    """A million sessions, a tenth of them with six steps a minute, in figures that were computed by hand."""
    found = size(Load(1e6))
    assert found.load.steps_s == 10_000
    assert found.masters == 1
    assert found.step_us == pytest.approx(76 + 532 / 16 + 13 + 144 / 16)
    assert found.replicas == 3  # 1.31 cores, at most half busy
    assert found.redis_bytes == pytest.approx(1e6 * 3761 * 1.5)
    assert found.store_bytes_s == pytest.approx(10_000 * 2816)
    assert found.replica_bytes == pytest.approx(121e6 + 1e5 / 3 * 2348 + 1024 * 2900)


def test_nothing_is_busier_than_planned() -> None:
    """However many sessions: replicas and masters have the cores that they need, and masters the memory."""
    for sessions in (1, 1e4, 3e6, 1e7, 1e9):
        found, plan = size(Load(sessions)), Plan()
        assert found.load.steps_s * found.step_us / 1e6 <= found.replicas * plan.busy
        assert found.load.steps_s * found.redis_us / 1e6 <= found.masters * plan.busy
        assert found.redis_bytes / plan.room <= found.masters * plan.master_bytes
        assert found.replicas >= plan.replicas


def test_idle_sessions_take_masters_for_memory_alone() -> None:
    """Where hardly anybody takes a step, the masters are as many as the sessions fill."""
    assert size(Load(1e8, active=1e-6)).masters == 24  # 376 GB in pieces of 16


def test_more_masters_cut_ticks_smaller() -> None:
    """A step costs more in a cluster, as fewer rows go to a master together; never more than one by itself."""
    few, many = size(Load(1.5e6)), size(Load(1e8))
    assert few.redis_us < many.redis_us == pytest.approx(sizing.REDIS_CLUSTER.us(1))


@pytest.mark.parametrize(
    ("cost", "measured"),
    [  # rows that go together: µs of CPU per step, from docs/redis.md and docs/operation.md
        (sizing.COMMIT_ONE, {1: 157, 16: 24.8, 64: 13.7}),
        (sizing.REDIS_ONE, {1: 103, 64: 15.7}),
        (sizing.COMMIT_CLUSTER, {1: 169.4, 2: 111.0, 4: 68.3, 16: 37.9, 64: 32.6}),
        (sizing.REDIS_CLUSTER, {1: 105.1, 2: 70.3, 4: 50.6, 16: 33.5, 64: 28.7}),
        (Cost(sizing.SERVING.each + 13, sizing.SERVING.call + 144), {1: 765, 64: 98}),
    ],
)
def test_costs_fit_what_was_measured(cost: Cost, measured: dict[int, float]) -> None:
    """Each cost is within an eighth of every measurement."""
    for rows, us in measured.items():
        assert cost.us(rows) == pytest.approx(us, rel=0.125)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--sessions", "0"), ("--sessions", "many"), ("--active", "2"), ("--row-bytes", "inf"), ("--installations", "0")],
)
def test_what_makes_no_sense_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value is told with its option."""
    with pytest.raises(SystemExit):
        main([option, value])
    assert option in capsys.readouterr().err


def test_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the table of what it was asked for."""
    main(["--sessions", "1e6", "--row-bytes", "4096"])
    assert capsys.readouterr().out.strip() == table([(Load(1e6, row_bytes=4096), 1)])
