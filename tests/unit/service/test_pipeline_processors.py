"""Where processors compute: long ticks are computed in a thread while the event loop finishes the ones before, and
sessions take turns in two groups; short ticks and few sessions are left as they are."""

import asyncio
import math
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from service.engine.runtime import Engine
from service.errors import ShuttingDown
from service.models import overlap_of
from service.pipeline import Overlap
from service.settings import load_settings
from tests.support.batching import Asked
from tests.support.fakes import PATIENCE_S, Gate, outcome, started
from tests.support.pipeline import Bench

INLINE_S = 0.01
LONG_S, SHORT_S = 0.003, 0.001


def made(begin_s: float = LONG_S, finish_s: float = SHORT_S) -> Bench:
    """A bench whose parts take so long, until their gates are used for something else."""
    bench = Bench(INLINE_S, Overlap.PROCESSORS, max_batch=64)
    takes(bench, bench.first, begin_s)
    takes(bench, bench.second, finish_s)
    bench.batcher.start()
    return bench


def takes(bench: Bench, part: Gate, seconds: float) -> None:
    """Have a part take so long; its gate holds it as before."""
    held: Callable[[], None] = type(part).pass_through.__get__(part)

    def pass_through() -> None:
        bench.clock.move(seconds)
        held()

    part.pass_through = pass_through  # type: ignore[method-assign]


async def known(bench: Bench) -> None:
    """Have a tick run, so that it is known how long they take."""
    await asyncio.gather(*bench.ask(0))
    bench.begun.clear()
    bench.finished.clear()
    bench.threads.clear()


@pytest.mark.parametrize(
    ("told", "provider", "threads", "overlap"),
    [
        ("auto", "cpu", 3, Overlap.PROCESSORS),
        ("auto", "cpu", 4, Overlap.OFF),  # no processor is left for anything else
        ("auto", "cuda", 4, Overlap.DEVICE),
        ("on", "cpu", 4, Overlap.DEVICE),
        ("off", "cpu", 1, Overlap.OFF),
        ("off", "cuda", 1, Overlap.OFF),
    ],
)
def test_what_the_setting_means(
    monkeypatch: pytest.MonkeyPatch, told: str, provider: str, threads: int, overlap: Overlap
) -> None:
    """By what computes, and with how many threads, on a machine of four cores."""
    monkeypatch.setattr("service.models.cores", lambda: 4)
    engine = cast(Engine, SimpleNamespace(provider=provider))
    assert overlap_of(load_settings(overlap=told), engine, threads) is overlap


async def test_long_ticks_are_computed_in_a_thread_and_finished_on_the_event_loop() -> None:
    """Computing needs no lock of the interpreter; committing and telling need it all the time."""
    bench = made()
    await known(bench)
    await asyncio.gather(*bench.ask(*range(16)))
    ((first, second),) = bench.threads
    assert first != threading.get_ident() == second
    await bench.batcher.close(PATIENCE_S)


@pytest.mark.parametrize(("begin_s", "finish_s"), [(SHORT_S, SHORT_S), (0.0019, 0.0079)])
async def test_ticks_that_compute_shortly_stay_on_the_event_loop(begin_s: float, finish_s: float) -> None:
    """Handing them over would cost more than it brings."""
    bench = made(begin_s, finish_s)
    await known(bench)
    await asyncio.gather(*bench.ask(*range(16)))
    assert bench.threads == [(threading.get_ident(),) * 2]
    await bench.batcher.close(PATIENCE_S)


async def test_a_slow_store_has_its_own_thread() -> None:
    """The event loop does not wait for it; a short computing then runs in one with it."""
    bench = made(finish_s=INLINE_S)
    await known(bench)
    await asyncio.gather(*bench.ask(*range(16)))
    ((first, second),) = bench.threads
    assert len({first, second, threading.get_ident()}) == 3
    await bench.batcher.close(PATIENCE_S)
    bench = made(begin_s=SHORT_S, finish_s=INLINE_S)
    await known(bench)
    await asyncio.gather(*bench.ask(1))
    ((first, second),) = bench.threads
    assert first == second != threading.get_ident()
    await bench.batcher.close(PATIENCE_S)


async def test_many_sessions_take_turns_in_halves() -> None:
    """While one half is computed the other is told, and comes back in time for the next tick."""
    bench = made()
    await known(bench)

    async def session(item: int) -> None:
        for _ in range(4):
            await asyncio.gather(*bench.ask(item))

    await asyncio.gather(*map(session, range(41)))
    assert {len(tick) for tick in bench.begun[:-1]} == {20, 21}
    await bench.batcher.close(PATIENCE_S)


async def test_a_half_is_finished_while_the_other_is_computed() -> None:
    """Its callers are told before the other's outcomes are there."""
    bench = made()
    await known(bench)
    reached = asyncio.Event()
    loop, plain = asyncio.get_running_loop(), bench.first.pass_through

    def second_is_held() -> None:
        if len(bench.begun) == 2:
            bench.first.shut()
            loop.call_soon_threadsafe(reached.set)
        plain()

    bench.first.pass_through = second_is_held  # type: ignore[method-assign]
    futures = bench.ask(*range(32))
    await asyncio.wait_for(reached.wait(), PATIENCE_S)
    assert await asyncio.wait_for(asyncio.gather(*futures[:16]), PATIENCE_S) == [2 * item for item in range(16)]
    assert not any(future.done() for future in futures[16:])
    bench.first.open()
    await asyncio.gather(*futures)
    await bench.batcher.close(PATIENCE_S)


async def test_few_sessions_share_their_ticks() -> None:
    """Below twice the least that is worth a tick of its own nothing is split, and a tick is over before the next."""
    bench = made()
    await known(bench)
    await asyncio.gather(*bench.ask(*range(31)))
    assert [len(tick) for tick in bench.begun] == [31]
    bench.first.shut()
    held = bench.ask(*range(16))
    await bench.first.reached()
    others = bench.ask(*range(15))
    bench.first.open()
    await asyncio.gather(*held)
    await asyncio.gather(*others)
    assert [len(tick) for tick in bench.begun] == [31, 16, 15]
    here = threading.get_ident()
    assert [second == here for _, second in bench.threads] == [True] * 3
    assert [first == here for first, _ in bench.threads] == [False, False, True]
    await bench.batcher.close(PATIENCE_S)


@pytest.mark.parametrize("fault", ["begin", "finish", "short"])
async def test_what_either_part_raises_goes_to_its_own_tick(fault: str) -> None:
    """The other half ends well, and the loop goes on."""
    bench = made()
    await known(bench)
    futures = bench.ask(*range(15), fault, *range(16))
    assert [type(await outcome(future)) for future in futures[:16]] == [RuntimeError] * 16
    assert await asyncio.gather(*futures[16:]) == [2 * item for item in range(16)]
    assert await asyncio.gather(*bench.ask(3)) == [6]
    assert (bench.counts.failed, bench.batcher.alive) == (16, True)
    await bench.batcher.close(PATIENCE_S)


async def test_close_finishes_what_was_accepted() -> None:
    """Both halves."""
    bench = made()
    await known(bench)
    bench.first.shut()
    futures = bench.ask(*range(40))
    await bench.first.reached()
    (closing,) = await started(bench.batcher.close(PATIENCE_S))
    bench.first.open()
    await closing
    assert [future.result() for future in futures] == [2 * item for item in range(40)]


async def test_close_fails_by_name_what_is_not_done_within_the_limit() -> None:
    """What is being computed and what waits; nothing of it is committed."""
    bench = made()
    await known(bench)
    bench.first.shut()
    futures = bench.ask(*range(40))
    await bench.first.reached()
    futures[-1].add_done_callback(lambda _: bench.first.open())
    await bench.batcher.close(0.0)
    assert [type(await outcome(future)) for future in futures] == [ShuttingDown] * 40
    assert bench.finished == []


async def test_a_fault_of_the_loop_leaves_a_computed_tick_uncommitted() -> None:
    """Nobody finishes it any more, and all are told so."""
    bench = made()
    await known(bench)

    def fault() -> int:
        raise ZeroDivisionError

    bench.first.shut()
    futures = bench.ask(*range(16), *range(7))
    struck = Asked(2, 1, bench.clock, math.inf)
    struck.claim = fault  # type: ignore[method-assign]
    bench.batcher.submit(struck)
    futures += bench.ask(*range(8))
    await bench.first.reached()
    bench.first.open()
    assert [type(await outcome(future)) for future in (*futures, struck.future)] == [ShuttingDown] * 32
    assert (bench.batcher.alive, bench.counts.ended, bench.finished) == (False, 1, [])


async def test_ticks_that_have_become_short_come_back_to_the_event_loop() -> None:
    """A slow one is forgotten."""
    bench = made()
    await known(bench)
    bench.first.pass_through = partial(bench.clock.move, 0.0)  # type: ignore[method-assign]
    for _ in range(9):
        await asyncio.gather(*bench.ask(*range(16)))
    here = threading.get_ident()
    on_the_loop = [first == here for first, _ in bench.threads]
    assert on_the_loop == sorted(on_the_loop)
    assert on_the_loop[0] != on_the_loop[-1]
    await bench.batcher.close(PATIENCE_S)
