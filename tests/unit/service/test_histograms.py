"""Histograms tell Prometheus what its client's own would, whoever observes, and however much."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Theirs

from service.histograms import Histogram

BUCKETS = [0.001, 0.01, 1.0, 5.0]
VALUES = st.one_of(st.sampled_from([*BUCKETS, 0.0, math.inf]), st.floats(-10, 10))


def ours() -> tuple[Histogram, CollectorRegistry]:
    """A histogram with one label."""
    registry = CollectorRegistry()
    return Histogram("x", "Help.", ["of"], BUCKETS, registry), registry


def samples(registry: CollectorRegistry) -> list[tuple[str, dict[str, str], float]]:
    """All that is told, but for when a series began."""
    told = [sample for family in registry.collect() for sample in family.samples]
    return [(s.name, s.labels, s.value) for s in told if not s.name.endswith("_created")]


@given(st.lists(st.tuples(st.sampled_from("ab"), VALUES)))
def test_it_tells_what_prometheus_own_tells(observed: list[tuple[str, float]]) -> None:
    """The same samples under the same names and labels, for any values: those on a bucket's bound too."""
    histogram, registry = ours()
    other = CollectorRegistry()
    theirs = Theirs("x", "Help.", ["of"], buckets=BUCKETS, registry=other)
    for label, value in observed:
        histogram.labels(label).observe(value)
        theirs.labels(label).observe(value)
    for (name, labels, value), expected in zip(samples(registry), samples(other), strict=True):
        assert (name, labels) == expected[:2]
        assert value == pytest.approx(expected[2], rel=1e-9, abs=1e-9)


def test_it_counts_more_than_it_notes() -> None:
    """Values are counted by themselves before too many wait, and again nothing is forgotten when it is asked."""
    histogram, registry = ours()
    series = histogram.labels("a")
    for n in range(10_000):
        series.observe(n % 2)
        if n % 3000 == 0:
            assert registry.get_sample_value("x_count", {"of": "a"}) == n + 1
    assert registry.get_sample_value("x_sum", {"of": "a"}) == 5000
    assert registry.get_sample_value("x_bucket", {"of": "a", "le": "0.001"}) == 5000


def test_threads_lose_nothing() -> None:
    """Several observe, one asks: in the end every value is counted once."""
    histogram, registry = ours()
    threads, each = 4, 20_000
    values = np.random.default_rng(1).uniform(0, 6, each).tolist()

    def observe() -> None:
        for value in values:
            histogram.labels("a").observe(value)

    running = [threading.Thread(target=observe) for _ in range(threads)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        samples(registry)
    assert registry.get_sample_value("x_count", {"of": "a"}) == threads * each
    assert registry.get_sample_value("x_sum", {"of": "a"}) == pytest.approx(threads * sum(values))
    expected = threads * sum(value <= 1.0 for value in values)
    assert registry.get_sample_value("x_bucket", {"of": "a", "le": "1.0"}) == expected
