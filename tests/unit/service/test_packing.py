"""Live sessions that nobody asks for take their row and little more, and answer as ever."""

import gc
import tracemalloc

import msgspec
import pytest

from service.sessions import arena
from service.sessions.packing import Packed
from service.sessions.requests import Advance
from service.state import Answer
from service.views import View
from tests.support.brain import Brain, Serve, drawn, numbers, sums
from tests.support.records import plain, record

ID = "0123456789abcdef" * 2
OVERHEAD = 250  # bytes of a packed session beside its row


@pytest.fixture
async def packing(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> Brain:
    """A brain that keeps one session unpacked."""
    monkeypatch.setattr(arena, "READY", 1)
    return serve()


async def test_there_and_back(brain: Brain) -> None:
    """A record comes back as it was but for its answers and its output, which the store has."""
    model, packed = brain.model("adder"), Packed()
    for before in (record("a", row=b"row" * 9, position=7), msgspec.structs.replace(record(ID, row=b""), trace=b"")):
        packed.add(before, model)
        after = packed.pop(before.identity.id)
        assert after is not None
        assert plain(after[0]) == plain(msgspec.structs.replace(before, answers=(), output=b""))
        assert after[1] is model
        assert packed.pop(before.identity.id) is None


async def test_sessions_of_a_kind_share_what_they_have_in_common(brain: Brain) -> None:
    """One kind for all, and none once the last is gone."""
    packed, model = Packed(), brain.model("adder")
    for id, ttl_s in (("a", 9.0), ("b", 9.0), ("c", 1.0)):
        packed.add(record(id, ttl_s=ttl_s), model)
    assert [kind.sessions for kind in packed._kinds.values()] == [2, 1]
    popped = packed.pop("b")
    assert popped is not None
    assert popped[0].identity.ttl_s == 9.0
    packed.drop_oldest(2)
    assert (len(packed), packed._kinds, packed._same) == (0, {}, {})


async def test_a_packed_session_goes_on(packing: Brain) -> None:
    """From the position and the state that it had."""
    ids = [await packing.create() for _ in range(5)]
    for id in ids:
        assert await packing.add(id, 1) == [1]
    loads = len(packing.store.loads)
    for id in ids:
        assert await packing.add(id, 2, position=1) == [3]
    assert len(packing.store.loads) == loads, "they were packed, not let go"
    assert packing.metric("sessions", where="live") == 5


async def test_a_repeat_after_packing_gets_the_same_answer(packing: Brain) -> None:
    """The answer is in the store, and nothing moves."""
    id = await packing.create()
    first, _ = await packing.advance(id, 1, 2, position=0)
    for _ in range(3):
        await packing.add(await packing.create(), 1)
    again, repeated = await packing.advance(id, 1, 2, position=0)
    assert repeated
    assert plain(again) == plain(first)
    assert sums((await packing.advance(id, 4, position=2))[0]) == [7]


@pytest.mark.parametrize("steps", [1, 200])
async def test_a_stream_may_repeat_what_was_answered_before_packing(packing: Brain, steps: int) -> None:
    """As many answers are kept as it was opened for, wherever the session was in between."""
    id = await packing.create()

    async def send(position: int, steps: int) -> tuple[Answer, bool]:
        return await packing.sessions.advance(id, Advance(numbers(*[1] * steps), View(), position, keep=16), "")

    first, _ = await send(0, 1)
    for _ in range(3):
        await packing.add(await packing.create(), 1)
    second, _ = await send(1, steps)
    for sent, before in (((0, 1), first), ((1, steps), second)):
        again, repeated = await send(*sent)
        assert repeated
        assert plain(again) == plain(before)


@pytest.mark.parametrize("advance", [True, False])
async def test_a_generation_after_packing_is_the_same(packing: Brain, advance: bool) -> None:
    """It continues from the output that the store has."""
    told = []
    for packed in (False, True):
        id = await packing.create("language")
        await packing.write(id, "once upon")
        if packed:
            for _ in range(3):
                await packing.add(await packing.create(), 1)
        generated = await packing.generate(id, drawn(5, advance=advance))
        told.append((generated.text, generated.position))
    assert told[0] == told[1]


async def test_ended_sessions_leave(packing: Brain) -> None:
    """A packed session that is deleted is not live any more."""
    ids = [await packing.create() for _ in range(3)]
    await packing.sessions.delete(ids[0], "")
    assert packing.metric("sessions", where="live") == 2


async def test_beyond_max_live_the_oldest_go(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """They rest in the store, and come back from it."""
    monkeypatch.setattr(arena, "READY", 1)
    brain = serve(max_live=3)
    ids = [await brain.create() for _ in range(6)]
    assert brain.metric("sessions", where="live") == 3
    loads = len(brain.store.loads)
    assert [await brain.add(id, 1) for id in ids] == [[1]] * 6
    assert len(brain.store.loads) > loads


async def test_memory(brain: Brain) -> None:
    """A packed session takes at most its row and 250 bytes, the table that finds it by its id included."""
    model, packed = brain.model("adder"), Packed()
    row, many = bytes(2048), 2000
    gc.collect()
    tracemalloc.start()
    for n in range(many):
        packed.add(record(f"{n:032x}", row=row), model)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(packed) == many
    assert len(row) < taken / many <= len(row) + OVERHEAD


@pytest.mark.parametrize(
    "other",
    [
        ID.upper(),
        f" {ID}",
        f"{ID[:2]} {ID[2:]}",
        ID[:-1],
        "",
        "no hexadecimal",
        f"0x{ID[2:]}",
        f"{ID[:2]}_{ID[3:]}",
        f"+{ID[1:]}",
    ],
)
def test_only_the_very_same_id_finds_a_packed_session(brain: Brain, other: str) -> None:
    """What reads as the same number is another id all the same."""
    packed = Packed()
    packed.add(record(ID), brain.model("adder"))
    assert packed.pop(other) is None
    packed.add(record(other), brain.model("adder"))
    assert len(packed) == 2
    assert [packed.pop(id) is not None for id in (other, ID, ID)] == [True, True, False]
