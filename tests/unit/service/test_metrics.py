"""The metrics: their names are an interface, and each says which setting it informs."""

import math
import re
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.errors import StoreUnavailable
from service.metrics import ROWS, SECONDS, Metrics
from service.settings import Settings
from tests.support.brain import Brain

NAMES = {
    "build",
    "commit_seconds",
    "dropped",
    "generated",
    "loops_ended",
    "model_info",
    "padding_cells",
    "queue_seconds",
    "rejected",
    "replayed",
    "request_seconds",
    "run_seconds",
    "session_loads",
    "sessions",
    "sessions_created",
    "sessions_ended",
    "steps",
    "store_warnings",
    "tick_failures",
    "tick_rows",
    "waiting",
}


@pytest.fixture
def help_texts() -> dict[str, str]:
    """Every metric's help, by its name without the prefix."""
    return {m.name.removeprefix("lstm_serve_"): m.documentation for m in Metrics().registry.collect()}


def test_names_are_an_interface(help_texts: dict[str, str]) -> None:
    """Dashboards and alerts hold on to the names: none changes by accident."""
    assert set(help_texts) == NAMES


def test_each_says_which_setting_it_informs(help_texts: dict[str, str]) -> None:
    """Whatever is called informed is a setting; and each setting named is one that exists."""
    named = set()
    for name, text in help_texts.items():
        assert text.endswith("."), name
        for words in re.findall(r"informs ([^)]*)", text):
            named |= set(words.replace("the limits", "").replace(",", " ").split())
    assert named <= set(Settings.model_fields)
    assert {"max_batch", "threads", "segment_steps", "durability", "max_live", "max_queue"} <= named


def test_buckets_fit_50_microseconds_to_5_seconds() -> None:
    """Histograms tell a small step from a long generation; batch sizes go up in powers of two."""
    assert (SECONDS[0], SECONDS[-1]) == (50e-6, 5.0)
    assert all(1.5 <= b / a <= 2.6 for a, b in pairwise(SECONDS))
    assert list(ROWS) == [2**n for n in range(11)]


def test_there_is_no_global_registry() -> None:
    """Two services in one process do not meet."""
    registry = CollectorRegistry()
    one, other = Metrics(registry), Metrics()
    one.replayed.inc()
    assert one.registry is registry
    assert other.registry.get_sample_value("lstm_serve_replayed_total") == 0


def test_what_cannot_be_read_is_not_a_number() -> None:
    """While the store cannot be read its gauge is NaN, and every other metric is told as ever."""
    metrics = Metrics()

    def kept() -> int:
        raise StoreUnavailable("away")

    metrics.count_sessions(lambda: 3, kept)
    generate_latest(metrics.registry)
    live, resting = (
        metrics.registry.get_sample_value("lstm_serve_sessions", {"where": where}) for where in ("live", "resting")
    )
    assert live == 3
    assert resting is not None
    assert math.isnan(resting)


async def test_a_step_leaves_its_traces(brain: Brain) -> None:
    """Queue, run, commit, rows, steps and padding are counted for each model."""
    id = await brain.create()
    await brain.add(id, 1, 2, 3)
    await brain.add(id, 4)
    for name in ("queue_seconds_count", "run_seconds_count", "commit_seconds_count", "tick_rows_sum"):
        assert brain.metric(name, model="adder") == 2, name
    assert brain.metric("steps_total", model="adder") == 4
    assert brain.metric("padding_cells_total", model="adder") == 0
    assert brain.metric("sessions", where="live") == 1
    text = generate_latest(brain.metrics.registry).decode()
    assert 'lstm_serve_queue_seconds_bucket{le="5e-05",model="adder"} 2.0' in text
    assert "_created" not in re.sub("sessions_created", "", text)
