"""A store over a network is never waited for on the event loop, whatever is done with it."""

import threading
from collections.abc import Callable

import pytest

from service.stores.base import Store
from tests.support.brain import Brain, Serve, drawn, primed
from tests.support.fakes import FaultyStore

CALLS = ("create", "load", "commit", "end", "expire", "forget", "page", "maintain", "check", "warnings")


@pytest.fixture
def called(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Of each method of the store: the threads that have called it. The store says that it is remote."""
    monkeypatch.setattr(FaultyStore, "remote", True)
    threads: dict[str, set[str]] = {}

    def watched(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return method(*arguments)

        return call

    for name in CALLS:
        monkeypatch.setattr(store, name, watched(name, getattr(store, name)))
    return threads


@pytest.fixture
async def brain(serve: Serve, called: dict[str, set[str]]) -> Brain:
    """A brain whose ticks are short enough for the event loop."""
    return serve(inline_ms=1000, max_live=1, segment_steps=2)


async def test_nothing_waits_for_the_store_on_the_event_loop(brain: Brain, called: dict[str, set[str]]) -> None:
    """Steps, long chunks, generations, deletions, lists, sweeps and looks at the store's health: each has a thread."""
    sessions = brain.sessions
    id = await primed(brain)
    summing = await brain.create()
    for _ in range(3):
        await brain.add(summing, 1)
        await brain.write(id, "a")
    await brain.add(summing, *range(9))
    await brain.stream(id, drawn(2, advance=True))
    await brain.generate(id, drawn(2, advance=True))
    await sessions.reset(summing, "")
    await sessions.page("", None, "", 10)
    await sessions.get(id, "")
    await sessions.delete(id, "")
    await sessions.check()
    await sessions.sweep()
    assert set(called) == set(CALLS)
    assert not {name for name, threads in called.items() if threading.current_thread().name in threads}
