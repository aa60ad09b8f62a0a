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
from service.errors import OutcomeUnknown, ShuttingDown
from service.models import overlap_of
from service.pipeline import Overlap, Pipeline
from service.settings import load_settings
from tests.support.batching import Asked
from tests.support.fakes import PATIENCE_S, Gate, outcome, started, turns
from tests.support.pipeline import Bench

INLINE_S = 0.01
LONG_S, SHORT_S = 0.003, 0.001


def made(
    begin_s: float = LONG_S, finish_s: float = SHORT_S, max_batch: int = 64, overlap: Overlap = Overlap.IN_TURNS
) -> Bench:
    """A bench whose parts take so long; ``known`` has it know that."""
    bench = Bench(INLINE_S, overlap, max_batch)
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
    await bench.answers(*range(16))
    bench.begun.clear()
    bench.finished.clear()
    bench.threads.clear()


@pytest.mark.parametrize(
    ("told", "provider", "threads", "overlap"),
    [
        ("auto", "cpu", 3, Overlap.IN_TURNS),
        ("auto", "cpu", 4, Overlap.OFF),  # no processor is left for anything else
        ("auto", "cuda", 4, Overlap.WHEN_LONG),
        ("on", "cpu", 4, Overlap.WHEN_LONG),
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
    await bench.answers(*range(16))
    ((first, second),) = bench.threads
    assert first != threading.get_ident() == second
    await bench.batcher.close(PATIENCE_S)


@pytest.mark.parametrize(("begin_s", "finish_s"), [(SHORT_S, SHORT_S), (0.0019, 0.0079)])
async def test_ticks_that_compute_shortly_stay_on_the_event_loop(begin_s: float, finish_s: float) -> None:
    """Handing them over would cost more than it brings."""
    bench = made(begin_s, finish_s)
    await known(bench)
    await bench.answers(*range(16))
    assert bench.threads == [(threading.get_ident(),) * 2]
    await bench.batcher.close(PATIENCE_S)


async def test_a_slow_store_has_its_own_thread() -> None:
    """The event loop does not wait for it; a short computing then runs in one with it."""
    bench = made(finish_s=2 * INLINE_S)
    await known(bench)
    await bench.answers(*range(16))
    ((first, second),) = bench.threads
    assert len({first, second, threading.get_ident()}) == 3
    await bench.batcher.close(PATIENCE_S)
    bench = made(begin_s=SHORT_S, finish_s=2 * INLINE_S)
    await known(bench)
    await bench.answers(1)
    ((first, second),) = bench.threads
    assert first == second != threading.get_ident()
    await bench.batcher.close(PATIENCE_S)


async def test_many_sessions_take_turns_in_halves() -> None:
    """While one half is computed the other is told, and comes back in time for the next tick."""
    bench = made()
    await known(bench)

    async def session(item: int) -> None:
        for _ in range(4):
            await bench.answers(item)

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
    await bench.answers(*range(31))
    assert [len(tick) for tick in bench.begun] == [31]
    held = await bench.begins(*range(16))
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
    assert await bench.answers(3) == [6]
    assert (bench.counts.failed, bench.batcher.alive) == (16, True)
    await bench.batcher.close(PATIENCE_S)


async def test_close_finishes_what_was_accepted() -> None:
    """Both halves."""
    bench = made()
    await known(bench)
    futures = await bench.begins(*range(40))
    (closing,) = await started(bench.batcher.close(PATIENCE_S))
    bench.first.open()
    await closing
    assert [future.result() for future in futures] == [2 * item for item in range(40)]


async def test_close_fails_by_name_what_is_not_done_within_the_limit() -> None:
    """What is being computed and what waits; nothing of it is committed."""
    bench = made()
    await known(bench)
    futures = await bench.begins(*range(40))
    futures[-1].add_done_callback(lambda _: bench.first.open())
    await bench.batcher.close(0.0)
    assert [type(await outcome(future)) for future in futures] == [ShuttingDown] * 40
    assert bench.finished == []


@pytest.mark.parametrize("computed", [False, True])
async def test_a_fault_of_the_loop_leaves_what_was_not_finished_uncommitted(computed: bool) -> None:
    """Nobody finishes it any more, and all are told so."""
    bench = made()
    await known(bench)

    def fault() -> int:
        raise ZeroDivisionError

    futures = await bench.begins(*range(16))
    if computed:
        bench.first.open()
        bench.batcher._pipeline._beginning.submit(int).result(PATIENCE_S)  # behind it: the tick is computed
    struck = Asked(2, 1, bench.clock, math.inf)
    struck.claim = fault  # type: ignore[method-assign]
    bench.batcher.submit(struck)
    futures += [struck.future, *bench.ask(*range(15))]
    assert [type(await asyncio.wait_for(outcome(future), PATIENCE_S)) for future in futures] == [ShuttingDown] * 32
    bench.first.open()
    await bench.batcher.close(PATIENCE_S)
    assert (bench.batcher.alive, bench.counts.ended, bench.finished) == (False, 1, [])


async def test_ticks_that_have_become_short_come_back_to_the_event_loop() -> None:
    """A slow one is forgotten."""
    bench = made()
    await known(bench)
    bench.first.pass_through = partial(bench.clock.move, 0.0)  # type: ignore[method-assign]
    for _ in range(9):
        await bench.answers(*range(16))
    here = threading.get_ident()
    on_the_loop = [first == here for first, _ in bench.threads]
    assert on_the_loop == sorted(on_the_loop)
    assert on_the_loop[0] != on_the_loop[-1]
    await bench.batcher.close(PATIENCE_S)


async def test_a_full_half_is_handed_over_while_the_one_before_is_computed() -> None:
    """The thread goes on without waiting for the event loop; a third half waits in the queue, however many come."""
    bench = made()
    await known(bench)
    await bench.begins(*range(16))
    bench.ask(*range(15))
    await turns()
    assert bench.batcher.waiting == 15  # one more might come, and would else have to wait for long
    bench.ask(15)
    await turns()
    assert bench.batcher.waiting == 0
    bench.ask(*range(64))
    await turns()
    assert bench.batcher.waiting == 64
    bench.first.open()
    await bench.batcher.close(PATIENCE_S)
    assert [len(tick) for tick in bench.begun[:2]] == [16, 16]


async def test_a_full_tick_is_handed_over_though_more_are_under_way() -> None:
    """A tick holds no more, so there is nothing to wait for."""
    bench = made(max_batch=20)
    await known(bench)
    await bench.begins(*range(60))
    await turns()
    assert bench.batcher.waiting == 20
    bench.first.open()
    await bench.batcher.close(PATIENCE_S)
    assert [len(tick) for tick in bench.begun] == [20] * 3


async def test_what_is_not_enough_does_not_wake_the_batcher() -> None:
    """While a tick is computed, requests come one by one: none of them is looked at before there is something to do."""
    bench = made()
    await known(bench)
    await bench.begins(*range(16))
    await turns()
    looks, wanted = 0, bench.batcher._pipeline.wanted

    def counted(_: object) -> int:
        nonlocal looks
        looks += 1
        return wanted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "wanted", property(counted))
        for item in range(15):
            bench.ask(item)
            await turns()
        assert looks == 0
        bench.ask(15)
        await turns()
        assert looks > 0
    bench.first.open()
    await bench.batcher.close(PATIENCE_S)


async def test_waiting_in_the_thread_is_waiting() -> None:
    """A work has waited until its computing begins: what is told of queues grows with the load."""
    bench = made(begin_s=1.0)
    await known(bench)
    bench.counts.waits.clear()
    await bench.answers(*range(32))
    assert bench.counts.waits == pytest.approx([0.0] * 16 + [1.0] * 16, abs=0.1)
    await bench.batcher.close(PATIENCE_S)


async def test_with_a_slow_store_one_tick_is_computed_ahead() -> None:
    """One is committed, one waits for that, a third is computed; they end in their order."""
    bench = made(finish_s=2 * INLINE_S)
    await known(bench)
    bench.second.shut()
    futures = bench.ask(*range(32))
    await bench.second.reached()
    futures += bench.ask(*range(32, 48))
    while len(bench.begun) < 3:  # noqa: ASYNC110 - in another thread
        await asyncio.sleep(0)
    futures += bench.ask(*range(48, 64))
    await turns()
    assert (len(bench.begun), bench.finished, bench.batcher.waiting) == (3, [], 16)
    bench.second.open()
    assert await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S) == [2 * item for item in range(64)]
    assert [tick[0] for tick in bench.finished] == [0, 16, 32, 48]
    await bench.batcher.close(PATIENCE_S)


async def test_short_ticks_among_long_ones_of_few_are_not_split() -> None:
    """It counts what many works take: a prefill now and then says nothing of them."""
    bench = made(begin_s=0.0004)
    await known(bench)
    short = bench.first.pass_through
    for _ in range(4):
        await bench.answers(*range(40))
        bench.first.pass_through = partial(bench.clock.move, LONG_S)  # type: ignore[method-assign]
        await bench.answers(0)
        bench.first.pass_through = short  # type: ignore[method-assign]
    assert [len(tick) for tick in bench.begun] == [40, 1] * 4
    assert {*bench.threads} == {(threading.get_ident(),) * 2}
    await bench.batcher.close(PATIENCE_S)


async def test_the_threads_stand_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has come to its limit for a moment goes on serving."""
    bench = made(finish_s=2 * INLINE_S)
    await known(bench)

    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert await bench.answers(*range(40)) == [2 * item for item in range(40)]
    assert len({thread for threads in bench.threads for thread in threads}) == 2
    await bench.batcher.close(PATIENCE_S)


@pytest.mark.parametrize(("finish_s", "first"), [(SHORT_S, ShuttingDown), (2 * INLINE_S, OutcomeUnknown)])
async def test_the_end_of_the_loop_leaves_nobody_waiting(finish_s: float, first: type[Exception]) -> None:
    """What is no mere error ends the loop, in whichever thread it was raised."""
    bench = made(finish_s=finish_s)
    await known(bench)

    class Ends(BaseException):
        pass

    def ends() -> None:
        raise Ends

    bench.second.pass_through = ends  # type: ignore[method-assign]
    futures = bench.ask(*range(32))
    told = [await asyncio.wait_for(outcome(future), PATIENCE_S) for future in futures]
    assert [type(each) for each in told] == [first] * 16 + [ShuttingDown] * 16
    assert (bench.batcher.alive, bench.counts.ended) == (False, 1)
    await bench.batcher.close(PATIENCE_S)


async def test_a_first_tick_that_fails_says_nothing_of_what_finishing_takes() -> None:
    """The next one still runs in a thread."""
    bench = made(begin_s=SHORT_S, finish_s=2 * INLINE_S)
    (future,) = bench.ask("begin")
    assert isinstance(await asyncio.wait_for(outcome(future), PATIENCE_S), RuntimeError)
    assert await bench.answers(1) == [2]
    assert threading.get_ident() not in {thread for threads in bench.threads for thread in threads}
    await bench.batcher.close(PATIENCE_S)


async def test_ticks_that_fail_slowly_run_in_the_threads_too() -> None:
    """How long they take is known all the same."""
    bench = made(begin_s=INLINE_S)
    await known(bench)
    for _ in range(3):
        (future,) = bench.ask("finish")
        assert isinstance(await asyncio.wait_for(outcome(future), PATIENCE_S), RuntimeError)
    assert all(second != threading.get_ident() for _, second in bench.threads)
    await bench.batcher.close(PATIENCE_S)


@pytest.mark.parametrize("overlap", [Overlap.IN_TURNS, Overlap.WHEN_LONG, Overlap.OFF])
async def test_what_may_be_committed_at_the_end_is_said_to_be_unknown(overlap: Overlap) -> None:
    """What stands in a commit when the time to shut down is over; of all else it is known that it was not applied."""
    bench = made(finish_s=2 * INLINE_S, overlap=overlap)
    await known(bench)
    futures = bench.ask(*range(16))
    bench.second.shut()
    await bench.second.reached()
    bench.first.shut()
    others = bench.ask(*range(16))
    others[-1].add_done_callback(lambda _: (bench.first.open(), bench.second.open()))
    await bench.batcher.close(0.0)
    told = [await asyncio.wait_for(outcome(future), PATIENCE_S) for future in [*futures, *others]]
    assert [type(each) for each in told] == [OutcomeUnknown] * 16 + [ShuttingDown] * 16
