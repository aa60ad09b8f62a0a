"""What is chosen at the start: another way than the fixed one only where it is clearly better every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine import tuning
from service.engine.repository import load_repository
from service.engine.runtime import Engine, Run
from service.engine.tuning import Choice, Cost, Tuner
from service.errors import ArtifactError
from service.fronts import supervisor
from service.settings import load_settings
from service.state import Chunk
from tests.support.signatures import document, parse

Price = Callable[[int, int], Cost]  # what a tick takes, in seconds, by its rows and the threads
FIXED = Choice(1, 128)


class Meter:
    """What the fake engines have spent; ``disturb`` is added to the wall time of the run of that number."""

    def __init__(self) -> None:
        self.total, self.runs = Cost(0.0, 0.0), 0
        self.disturb: dict[int, float] = {}

    def spend(self, cost: Cost) -> None:
        """One run."""
        self.runs += 1
        wall = cost.wall + self.disturb.get(self.runs, 0.0)
        self.total = Cost(self.total.wall + wall, self.total.cpu + cost.cpu)


@dataclass
class Fake(Engine):
    """An engine that takes what its price says. ``exact_from``: what the probe will find."""

    meter: Meter
    price: Price
    threads: int = 1
    fingerprint: str = "same"
    answer: bytes = b"bits"
    provider: str = "cpu"
    exact_from: int | None = 1
    min_rows: int = 1
    bit_exact: bool = True
    initial_row: bytes = b"row"

    def __post_init__(self) -> None:
        self.signature = parse(document())

    def run(self, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> Run:
        """See ``Engine``."""
        assert len(rows) == len(chunks)
        self.meter.spend(self.price(max(len(rows), self.min_rows), self.threads))
        return Run({}, [self.answer] * len(rows), [True] * len(rows), 0)


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of a fake engine finds what the test has put into it."""

    def probe(engine: Fake) -> None:
        engine.min_rows, engine.bit_exact = engine.exact_from or 1, engine.exact_from is not None

    monkeypatch.setattr(tuning, "probe", probe)


def tuned(
    price: Price,
    cores: int = 8,
    settings: dict[str, object] | None = None,
    meter: Meter | None = None,
    **others: Any,  # noqa: ANN401 - of several types
) -> Tuner:
    """A tuner that has chosen; engines with other threads differ by ``others``."""
    spent = meter or Meter()
    engine = Fake(spent, price)
    tuner = Tuner(engine, load_settings(**(settings or {})), spent=lambda: spent.total)
    tuner.tune(cores, lambda threads: replace(engine, threads=threads, **others))
    return tuner


def even(rows: int, threads: int) -> Cost:
    """A tick of 64 rows takes 32 ms, and half of it with twice the threads, for a tenth more CPU time."""
    doublings = threads.bit_length() - 1
    return Cost(rows * 0.5e-3 / threads, rows * 0.5e-3 * 1.1**doublings)


def light(rows: int, threads: int) -> Cost:
    """As even, but a row takes a tenth of the time, about as long as it takes to serve it."""
    slow = even(rows, threads)
    return Cost(slow.wall / 10, slow.cpu / 10)


def short(rows: int, threads: int) -> Cost:
    """A row takes 10 µs, however many there are."""
    return Cost(rows * 1e-5, rows * 1e-5)


@pytest.mark.parametrize(
    ("price", "cores", "threads"),
    [(even, 1, 1), (even, 2, 2), (even, 7, 4), (even, 8, 8), (light, 2, 1), (light, 4, 2), (light, 8, 4)],
)
def test_long_ticks_get_the_threads_that_pay(price: Price, cores: int, threads: int) -> None:
    """As many as shorten a tick, of those that the process may use; where serving a row takes as long as computing it,
    a core is left for that."""
    tuner = tuned(price, cores)
    assert tuner.choice == Choice(threads, 128)
    assert isinstance(tuner.engine, Fake)
    assert tuner.engine.threads == threads


def test_threads_double_as_long_as_it_pays() -> None:
    """What four do not do better than two stays with two."""
    assert tuned(lambda rows, threads: even(rows, min(threads, 2))).choice.threads == 2


UNPAID: dict[str, Price] = {
    "a little faster": lambda rows, threads: Cost(rows * (0.5e-3 if threads == 1 else 0.4e-3), rows * 0.5e-3),
    "much more CPU": lambda rows, threads: Cost(rows * 0.5e-3 / threads, rows * 0.5e-3 * (1.3 if threads > 1 else 1)),
    "later alone": lambda rows, threads: even(rows, threads) if rows > 1 else Cost(1e-3 * threads, 1e-3 * threads),
}


@pytest.mark.parametrize("price", UNPAID.values(), ids=UNPAID.keys())
def test_threads_that_do_not_pay_are_not_taken(price: Price) -> None:
    """A tick must be clearly shorter for little more CPU time, and a row alone must not wait for it."""
    assert tuned(price).choice == FIXED


@pytest.mark.parametrize(
    "others", [{"answer": b"other"}, {"exact_from": 4}, {"exact_from": None}, {"fingerprint": "new"}]
)
def test_threads_change_nothing_that_a_client_sees(others: dict[str, Any]) -> None:
    """Other bits, fewer promises, or a file that was replaced meanwhile: the usual engine stays."""
    tuner = tuned(even, **others)
    assert tuner.choice == FIXED
    assert isinstance(tuner.engine, Fake)
    assert tuner.engine.threads == 1


@pytest.mark.parametrize("rows_s", [0.5, 5.0])
def test_a_model_of_slow_ticks_is_measured_in_smaller_ones(rows_s: float) -> None:
    """The moment stays short: where 64 rows take half a minute, one is enough to see what threads do."""
    meter = Meter()
    tuner = tuned(lambda rows, threads: Cost(rows * rows_s / threads, rows * rows_s), cores=2, meter=meter)
    assert tuner.choice.threads == 2
    assert meter.total.wall < 20 * rows_s
    assert tuned(lambda rows, threads: Cost(rows * rows_s, rows * rows_s), cores=2).choice == FIXED


@pytest.mark.parametrize(("cheap", "limit"), [(64, 64), (128, 128), (256, 256), (512, 512), (5000, 2048)])
def test_the_largest_tick_is_one_whose_rows_are_cheap(cheap: int, limit: int) -> None:
    """Up to a size the cost of a call is shared by more rows, beyond it a row costs more; no tick beyond max_cells."""

    def price(rows: int, threads: int) -> Cost:
        seconds = 1e-3 + rows * 1e-6 + max(0, rows - cheap) * 3e-5
        return Cost(seconds, seconds)

    assert tuned(price).choice == Choice(1, limit)


@pytest.mark.parametrize("share", [0.95, 1.0, 1.05])
def test_what_is_near_stays_as_it_is(share: float) -> None:
    """A few percent are what noise is made of."""

    def price(rows: int, threads: int) -> Cost:
        seconds = rows * 1e-5 * (share if rows != 128 else 1)
        return Cost(seconds, seconds)

    tuner = tuned(price)
    assert tuner.choice == FIXED
    assert tuner.engine.min_rows == 1


@pytest.mark.parametrize(("disturbed", "threads"), [(9, 2), (11, 1), (13, 1), (15, 1)])
def test_a_gain_has_to_show_every_time(disturbed: int, threads: int) -> None:
    """After a first run of both, the other way must be the better one in each of three rounds."""
    meter = Meter()
    meter.disturb = {
        disturbed: 1.0
    }  # seven runs find the usual tick and how heavy it is, then usual and other take turns
    assert tuned(even, cores=2, meter=meter).choice.threads == threads


@pytest.mark.parametrize(("least", "cheap", "filled"), [(1, 4, 4), (1, 1, 1), (4, 2, 4), (2, 8, 8)])
def test_a_tick_is_filled_up_where_that_is_cheaper(least: int, cheap: int, filled: int) -> None:
    """A call of more rows may cost less than one of few; below what the probe has found it never goes."""
    meter = Meter()
    price = {cheap: Cost(1e-4, 1e-4)}
    engine = Fake(meter, lambda rows, _: price.get(rows, Cost(2e-4, 2e-4)), min_rows=least)
    tuner = Tuner(engine, load_settings(), spent=lambda: meter.total)
    tuner.tune(1, _never)
    assert engine.min_rows == filled


def _never(threads: int) -> Engine:
    raise AssertionError(f"opened with {threads} threads")


@pytest.mark.parametrize(
    ("price", "settings", "provider"), [(short, {}, "cpu"), (even, {"threads": 1}, "cpu"), (even, {}, "cuda")]
)
def test_a_file_is_opened_again_only_where_threads_may_pay(
    price: Price, settings: dict[str, object], provider: str
) -> None:
    """Not for short ticks, not on a GPU, and not where the operator has said how many."""
    meter = Meter()
    tuner = Tuner(Fake(meter, price, provider=provider), load_settings(**settings), spent=lambda: meter.total)
    tuner.tune(8, _never)
    assert tuner.choice == FIXED


def test_a_limit_that_was_given_is_kept() -> None:
    """What the operator has said is not measured."""
    tuner = tuned(lambda rows, _: Cost(1e-3, 1e-3), settings={"max_batch": 128})
    assert tuner.choice == FIXED


def test_a_model_that_is_not_batched_is_left_as_it_is(repository: Path) -> None:
    """Its rows run one after the other, whatever shares a tick."""
    (model,) = [m for m in load_repository(repository, load_settings(provider="cpu"))[0] if m.name == "frozen"]
    assert (model.choice, model.engine.min_rows) == (FIXED, 1)


def test_what_is_chosen_is_logged_and_serves_the_same(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A real model, measured: one line tells how it runs, and its answers have the same bits as untuned."""
    caplog.set_level("INFO")
    answers = []
    for tune in (True, False):
        models, _ = load_repository(repository, load_settings(provider="cpu", tune=tune))
        (model,) = [m for m in models if m.name == "language"]
        done = model.engine.run([model.engine.initial_row] * 3, [(np.array([1, 2, 3]),)] * 3)
        answers.append((done.rows, done.outputs["logprobs"].tobytes()))
        assert (model.choice is not None) is tune
    assert answers[0] == answers[1]
    assert "measured: threads 1, ticks of 1 to " in caplog.text
    assert "as set: threads 1, ticks of 1 to 128 rows" in caplog.text


def test_front_ends_keep_a_core_each(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads requests must not wait for the threads of a tick."""
    spare: list[int] = []
    monkeypatch.setattr(Tuner, "tune", lambda _, cores, reopen: spare.append(cores))
    for workers in (0, 3):
        load_repository(repository, load_settings(provider="cpu", http_workers=workers))
    assert spare[0] - spare[-1] == 3


@pytest.mark.parametrize("error", [ArtifactError("gone"), RuntimeError("no memory")])
def test_what_cannot_be_measured_is_served_all_the_same(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """A larger tick that does not fit, or a file that has gone meanwhile, is no reason to leave a model out."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Tuner, "tune", fail)
    models, problems = load_repository(repository, load_settings(provider="cpu"))
    assert problems == []
    assert {m.choice for m in models} == {FIXED}
    assert "measuring it failed, which leaves it as it is: " in caplog.text


def test_a_padding_that_fails_is_not_kept() -> None:
    """The engine is left with the padding that the probe has found."""

    def price(rows: int, threads: int) -> Cost:
        if rows == 3:
            raise RuntimeError("no memory")
        return Cost(1e-4, 1e-4)

    meter = Meter()
    engine = Fake(meter, price)
    with pytest.raises(RuntimeError):
        Tuner(engine, load_settings(), spent=lambda: meter.total).tune(1, _never)
    assert engine.min_rows == 1


def test_a_process_of_its_own_measures_what_nobody_has_chosen() -> None:
    """An engine behind front ends gets what the operator has said, not the defaults as if they had been said."""
    told = supervisor._environment(load_settings(http_workers=2, max_batch=64), port=1)
    assert {"LSTM_SERVE_MAX_BATCH": "64", "LSTM_SERVE_PORT": "1"}.items() <= told.items()
    assert "LSTM_SERVE_THREADS" not in told
