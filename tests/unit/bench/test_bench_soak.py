"""The long run: what counts as flat, what a witness sees, and a short one with a real server."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from bench.flat import Limit, judge, slope
from bench.options import address
from bench.soak_report import Sample, Soak, verdict
from bench.witness import Chunks, Witness

SECONDS = [float(n) for n in range(100)]


def test_what_stays_is_flat_whatever_single_looks_say() -> None:
    """Outliers move neither the medians nor the slope."""
    values = [500.0 if n % 10 == 3 else 100.0 for n in range(100)]
    found = judge(SECONDS, values, Limit(0.05, 0.0))
    assert found.flat
    assert (found.first, found.last, found.per_hour, found.most) == (100.0, 100.0, 0.0, 500.0)


@pytest.mark.parametrize(("share", "slack", "flat"), [(0.05, 0.0, False), (1.0, 0.0, True), (0.0, 60.0, True)])
def test_what_grows_is_held_against_its_limit(share: float, slack: float, flat: bool) -> None:
    """A share of the first quarter, and at least the slack."""
    found = judge(SECONDS, [100.0 + n / 2 for n in range(100)], Limit(share, slack))
    assert found.flat == flat
    assert found.per_hour == pytest.approx(1_800.0)


def test_too_few_looks_are_not_judged() -> None:
    """A run that was too short says so."""
    with pytest.raises(ValueError, match="3 looks"):
        judge(SECONDS[:3], [1.0] * 3, Limit(1.0, 0.0))
    assert slope([1.0], [1.0]) == 0.0


def soak(change: Callable[[Sample, int], Sample] = lambda sample, n: sample) -> Soak:
    """A run of a hundred looks, every figure the same but for the change."""
    same = Sample(**{each.name: 1 if each.type in ("int", int) else 1.0 for each in fields(Sample)})
    looks = [change(replace(same, at_s=float(n), problems=0), n) for n in range(100)]
    return Soak({}, warm_up_s=20.0, samples=looks, requests=100)


def test_a_run_that_stays_as_it_was_is_without_fault() -> None:
    """The verdict says so, with what was done."""
    assert soak().faults() == []
    assert verdict(soak()).startswith("flat, and no step lost or doubled: 100 requests")


def test_what_grows_before_the_end_of_the_warm_up_does_not_count() -> None:
    """Caches fill."""
    assert soak(lambda sample, n: replace(sample, memory_mb=50.0 * min(n, 20))).faults() == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda sample, n: replace(sample, memory_mb=100.0 + 2 * n), "memory"),
        (lambda sample, n: replace(sample, files=100 + 10 * n), "open files"),
        (lambda sample, n: replace(sample, log_mb=900.0 if n == 50 else 1.0), "write-ahead log"),
    ],
)
def test_what_grows_is_a_fault(change: Callable[[Sample, int], Sample], word: str) -> None:
    """Named, in the verdict too."""
    (fault,) = soak(change).faults()
    assert word in fault
    assert verdict(soak(change)).startswith("NOT FLAT")


def test_what_went_wrong_is_a_fault() -> None:
    """However flat it was."""
    assert "wrong-sum" in "".join(replace_problems(soak()).faults())


def replace_problems(run: Soak) -> Soak:
    """A run in which one answer was wrong."""
    run.problems = {"wrong-sum": 1}
    return run


@pytest.mark.parametrize(("lost", "found"), [(0, None), (-7, "wrong-sum"), (7, "wrong-sum")])
def test_a_witness_knows_the_sum(lost: int, found: str | None) -> None:
    """Of a step that was lost, or applied twice, the next answer tells."""
    chunks = Chunks(2, [b'"inputs":[3,4]'], [7])
    witness = Witness(address("http://127.0.0.1:1"), chunks, random.Random(0))
    told = json.dumps({"position": 2, "outputs": {"total": [7.0 + lost]}}).encode()
    assert witness._problem(200, told) == found


def test_a_short_run(tmp_path: Path) -> None:
    """Sessions are created, go on, expire and are deleted; both restarts lose nothing; report and plot are written."""
    out, plot = tmp_path / "out" / "soak.json", tmp_path / "soak.png"
    plan = ("--hot", "6", "--cold", "40", "--cold-rate", "10", "--births", "4", "--life-s", "0.5", "--ttl-s", "0.5")
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.1", "--every-s", "0.25", *plan]
    done = subprocess.run([*command, "--out", out, "--plot", plot], capture_output=True, text=True, timeout=300)
    report = json.loads(out.read_text()) if out.exists() else pytest.fail(done.stdout + done.stderr)
    assert report["problems"] == {}
    assert report["requests"] > 0
    assert report["created"] > 0
    assert report["audited"] >= 46
    assert report["log_left_mb"] == 0
    assert done.returncode == (1 if report["faults"] else 0)
    assert plot.read_bytes().startswith(b"\x89PNG")
