"""Percentiles, the search, and what is read from the command line: plain functions."""

import json
import math
import random
from collections import Counter
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

from bench.crew import Stage
from bench.errors import BenchError
from bench.figures import QUANTILES, Histogram, Tally, together
from bench.inputs import chunks
from bench.options import Address, Options, Slo, address, counts, slo
from bench.report import kept_up, line, rows, warnings
from bench.schedule import poisson
from bench.search import MOST, Found, search


def options(**changed: object) -> Options:
    """Options of a stage."""
    usual = {"sessions": (1,), "rate": None, "steps": 1, "seconds": 1.0, "warm_up": 0.0, "processes": 1, "seed": 0}
    return Options(**{**usual, "slo": None, **changed})  # type: ignore[arg-type]  # checked where it is made


def histogram(durations: list[float]) -> Histogram:
    """Durations, counted."""
    made = Histogram()
    for duration in durations:
        made.add(duration)
    return made


def test_percentiles_are_those_of_the_sorted_durations() -> None:
    """By nearest rank; never too low, and at most 0.6 % too high."""
    chance = random.Random(1)
    durations = [chance.lognormvariate(-6, 1) for _ in range(10_000)]
    made = histogram(durations)
    for share in QUANTILES.values():
        exact = sorted(durations)[math.ceil(share * len(durations) - 1e-9) - 1]
        assert exact <= made.quantile(share) <= exact * 1.006
    assert made.quantile(1.0) == max(durations) == made.longest
    assert made.total == sum(count for _, count in made.curve()) == 10_000


def test_one_slow_answer_of_a_thousand_is_beyond_p999() -> None:
    """999 of 1,000 are quick, and so is the 99.9th percentile; with 998 it is not."""
    assert histogram([0.001] * 999 + [1.0]).quantile(0.999) < 0.0011
    assert histogram([0.001] * 998 + [1.0] * 2).quantile(0.999) == 1.0


def test_nothing_has_no_percentiles() -> None:
    """And a duration of nothing has one."""
    assert math.isnan(Histogram().quantile(0.5))
    assert histogram([0.0]).quantile(0.5) == 0.0


def test_processes_add_up() -> None:
    """Counts are summed, and the busiest process is told."""
    one = Tally(3, histogram([1.0] * 3), Histogram(), 1, Counter(lost=1), cpu_s=1.0, seconds=2.0)
    other = Tally(5, histogram([2.0] * 5), Histogram(), 0, Counter(lost=2), cpu_s=1.8, seconds=2.0)
    whole = together([one, other])
    assert (whole.requests, whole.unanswered, whole.problems, whole.busiest) == (8, 1, Counter(lost=3), 0.9)
    assert (whole.latencies.total, whole.latencies.longest, whole.cpu_s, whole.seconds) == (8, 2.0, 2.8, 2.0)


def test_arrivals_have_no_memory() -> None:
    """As many as the rate says; gaps as spread as their mean, and those after a long gap no shorter than others."""
    due = list(takewhile(lambda at: at < 110.0, poisson(100.0, 10.0, random.Random(0))))
    gaps = [after - before for before, after in zip([10.0, *due[:-1]], due, strict=True)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    following = [after for before, after in pairwise(gaps) if before > mean]
    assert due[0] > 10.0
    assert len(due) == pytest.approx(10_000, rel=0.03)
    assert spread == pytest.approx(mean, rel=0.05)
    assert sum(following) / len(following) == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100, 1000])
def test_the_search_comes_near(limit: int) -> None:
    """Within 5 % of what can be served, in few tries, and none twice."""
    tried: list[int] = []

    def within(sessions: int) -> bool:
        tried.append(sessions)
        return sessions <= limit

    found = search(within)
    assert found.beyond is not None
    assert found.most <= limit < found.beyond <= found.most + max(1, 0.05 * found.most)
    assert len(tried) == len(set(tried)) < 20


def test_the_ends_of_the_search() -> None:
    """Where one session is too many, and where as many as can be tried are not."""
    assert search(lambda sessions: False) == Found(0, 1)
    assert search(lambda sessions: True) == Found(MOST, None)


def test_options_are_read() -> None:
    """What is typed, as it is meant."""
    assert address("http://[::1]:8000/") == Address("::1", 8000)
    assert address("http://[::1]:8000/").authority == "[::1]:8000"
    assert address("http://here") == Address("here", 80)
    assert counts("1,16") == (1, 16)
    assert slo("p99.9=2.5ms") == Slo("p99.9", 0.0025)


@pytest.mark.parametrize("url", ["", "localhost:8000", "https://here", "http://here:x", "http://here/v1", "http://:80"])
def test_an_url_that_is_none(url: str) -> None:
    """It is named in the sentence."""
    with pytest.raises(BenchError, match="expected http://HOST:PORT"):
        address(url)


@pytest.mark.parametrize("text", ["", "p99", "p99=20", "p98=20ms", "p99=0ms", "p99=-1ms", "p99=20 ms", "p99=20ms!"])
def test_an_slo_that_is_none(text: str) -> None:
    """The sentence shows one that is."""
    with pytest.raises(BenchError, match="p99=20ms"):
        slo(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sessions", (4, 0)), ("rate", 0.0), ("rate", math.nan), ("steps", 0), ("seconds", 0.0), ("seconds", math.inf),
     ("warm_up", -1.0), ("processes", 0)],
)  # fmt: skip
def test_numbers_out_of_range(name: str, value: object) -> None:
    """The option is named."""
    with pytest.raises(BenchError, match=f"--{name.replace('_', '-')}: expected"):
        options(**{name: value})


def test_sessions_that_are_no_numbers() -> None:
    """The option is named."""
    with pytest.raises(BenchError, match="--sessions"):
        counts("1,many")


def spec(dtype: str, shape: list[int | None], name: str = "x") -> dict[str, object]:
    """An input as the service tells of it."""
    return {"name": name, "dtype": dtype, "shape": shape, "batch_axis": 0, "time_axis": 1}


@pytest.mark.parametrize(
    ("told", "kind", "depth"),
    [("int64", int, 0), ("float32", float, 1), ("bool", bool, 2), ("float16", float, 3)],
)
def test_inputs_have_the_shape_of_a_step(told: str, kind: type, depth: int) -> None:
    """Without the batch and the time axis, whatever the type."""
    model = {"vocabulary": None, "inputs": [spec(told, [None, None, 2, 3, 4][: 2 + depth])]}
    inputs = json.loads(b"{" + chunks(model, 5, seed=0)[0] + b"}")["inputs"]
    assert len(inputs) == 5
    for length in (2, 3, 4)[:depth]:
        inputs = inputs[0]
        assert len(inputs) == length
    assert type(inputs[0]) is kind


def test_tokens_are_of_the_vocabulary() -> None:
    """All of it is met, and one symbol is asked for."""
    model = {"vocabulary": list("abc"), "inputs": [spec("int64", [None, None])]}
    made = [json.loads(b"{" + chunk + b"}") for chunk in chunks(model, 2, seed=0)]
    assert {token for body in made for token in body["inputs"]} == {0, 1, 2}
    assert {body["top_k"] for body in made} == {1}


def test_several_inputs_go_by_name() -> None:
    """An object, with as many steps of each."""
    model = {"vocabulary": None, "inputs": [spec("float32", [None, None]), spec("int32", [None, None, 1], "n")]}
    inputs = json.loads(b"{" + chunks(model, 3, seed=0)[0] + b"}")["inputs"]
    assert {name: len(steps) for name, steps in inputs.items()} == {"x": 3, "n": 3}


def test_the_report_tells_what_was_counted(tmp_path: Path) -> None:
    """Per second, per step and per request; and it is JSON without anything that JSON has no name for."""
    tally = Tally(100, histogram([0.002] * 100), histogram([0.0001]), 2, Counter(overloaded=3), 0.9, 1.0, busiest=0.9)
    row = json.loads(json.dumps(rows(Stage(4, tally, 0.5), options(rate=25.0, steps=10)), allow_nan=False))
    assert (row["requests_per_s"], row["steps_per_s"], row["server_cpu_us_per_step"]) == (100.0, 1000.0, 500.0)
    assert row["generator"] == {"cpu_us_per_request": 9000.0, "busiest_process": 0.9, "late_ms_p99": 0.1}
    assert row["latency_ms"]["p99"] == row["latency_ms"]["max"] == 2.0
    assert row["latency_counts_ms"] == [[2.0, 100]]
    told = " ".join(warnings(row, processes=1))
    assert "90% busy" in told
    assert "2 requests were not answered" in told
    assert "3 x overloaded" in told


def test_a_stage_without_answers_is_told() -> None:
    """As dashes, not as numbers."""
    row = rows(Stage(4, Tally(), None), options())
    assert json.dumps(row, allow_nan=False)
    assert line(row).split()[2:8] == ["-"] * 6


def test_a_few_that_were_just_due_are_no_backlog() -> None:
    """A warning, and an SLO that is missed, begin at 1 % unanswered."""
    kept, behind = ({"unanswered": left, "requests": 1000} for left in (10, 11))
    assert kept_up(kept)
    assert not kept_up(behind)
