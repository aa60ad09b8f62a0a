"""Sessions that show their gates: whatever way their steps came, what is told belongs to the committed state."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from export.adoption.adopting import adopt_file
from export.adoption.wishes import Wishes
from service.engine.repository import LoadedModel, load_repository
from service.errors import (
    GatesNotKept,
    InvalidInput,
    NotFinite,
    Overloaded,
    UndecodableState,
    UnknownSession,
    UnsupportedTask,
)
from service.sessions.requests import Advance, Generate
from service.sessions.sessions import MAX_LOOKS
from service.settings import load_settings
from service.state import Record
from service.stores.base import Store
from service.trace import Layer, latest_spans
from tests.support import adopted, artifacts, operators
from tests.support.brain import LAST, Brain, Serve, drawn
from tests.support.fakes import Clock
from tests.support.records import moved

PROMPT = "once upon a time there was a model"


async def begun(brain: Brain, gates: int = 8, model: str = "language") -> str:
    """A session that shows its last steps."""
    return (await brain.sessions.create(model, None, None, "", gates)).identity.id


async def shown(brain: Brain, id: str, last: int | None = None) -> tuple[int, list[Layer]]:
    """What is told of a session, held against its committed row: the last h and c are the row's."""
    record = brain.kept(id)
    position, layers = await brain.sessions.gates(id, last, "")
    assert position == record.position
    tensors = brain.model(record.identity.model).engine.layout.unpack_one(record.row)
    for i, layer in enumerate(layers if position else []):
        for name, values in layer.states.items():
            assert np.max(np.abs(values[-1] - tensors[name].reshape(len(layers), -1)[i])) <= 1e-5
    return position, layers


def bits(layers: list[Layer]) -> list[bytes]:
    """Everything that is told, to the last bit."""
    return [values.tobytes() for layer in layers for values in (*layer.gates.values(), *layer.states.values())]


async def single_steps(brain: Brain, id: str) -> None:
    """One request for each symbol."""
    for symbol in PROMPT:
        await brain.write(id, symbol)


async def long_chunk(brain: Brain, id: str) -> None:
    """Chunks of many segments, and one more symbol."""
    await brain.write(id, PROMPT * 10)
    await brain.write(id, "x")


async def folded(brain: Brain, id: str) -> None:
    """Many requests that wait at the same time."""
    await asyncio.gather(*(brain.write(id, PROMPT[i : i + 3]) for i in range(0, 30, 3)))


async def generated(brain: Brain, id: str) -> None:
    """An unstreamed generation behind a prompt."""
    await brain.write(id, PROMPT)
    await brain.generate(id, drawn(20))


async def streamed(brain: Brain, id: str) -> None:
    """A streamed one."""
    await brain.write(id, PROMPT)
    await brain.stream(id, drawn(20))


WAYS: list[Callable[[Brain, str], Coroutine[Any, Any, None]]] = [single_steps, long_chunk, folded, generated, streamed]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_however_the_steps_came(serve: Serve, way: Callable[[Brain, str], Coroutine[Any, Any, None]]) -> None:
    """The last ones are told, by this process and by another one over the same store, to the same bits."""
    brain, other = serve(), serve()
    id = await begun(brain)
    await way(brain, id)
    _, layers = await shown(brain, id)
    assert [layer.steps for layer in layers] == [8, 8]
    assert bits((await shown(other, id))[1]) == bits(layers)
    await other.write(id, "z")
    after = (await shown(brain, id))[1]
    for layer, later in zip(layers, after, strict=True):
        np.testing.assert_allclose(later.gates["i"][:-1], layer.gates["i"][1:], atol=1e-6)


async def test_the_same_steps_show_the_same_gates(brain: Brain) -> None:
    """One symbol at a time, in one chunk, or in waiting requests: gates do not depend on how the input was cut."""
    ids = [await begun(brain, 30) for _ in range(3)]
    for symbol in PROMPT[:30]:
        await brain.write(ids[0], symbol)
    await brain.write(ids[1], PROMPT[:30])
    await asyncio.gather(*(brain.write(ids[2], PROMPT[i : i + 5]) for i in range(0, 30, 5)))
    first, second, third = [(await shown(brain, id))[1] for id in ids]
    assert bits(first) == bits(second) == bits(third)
    assert first[0].steps == 30


async def test_a_repeat_changes_nothing(brain: Brain) -> None:
    """A step that is sent again is in the trace once."""
    id = await begun(brain)
    await brain.write(id, "abc", position=0)
    before = brain.kept(id).trace
    await brain.write(id, "abc", position=0)
    assert brain.kept(id).trace == before
    assert (await shown(brain, id))[1][0].steps == 3


async def test_a_lost_race_leaves_no_trace(serve: Serve) -> None:
    """What another replica committed first is shown, and then what was tried again behind it."""
    brain, other = serve(), serve()
    id = await begun(brain, 6)
    await brain.write(id, "ab")
    await other.write(id, "cd")
    await brain.write(id, "ef")
    position, layers = await shown(brain, id)
    assert (position, layers[0].steps) == (6, 6)
    straight = await begun(brain, 6)
    await brain.write(straight, "abcdef")
    assert bits((await shown(brain, straight))[1]) == bits(layers)


async def test_a_what_if_leaves_no_trace(brain: Brain) -> None:
    """A forecast is not part of the session, unless it was told to be."""
    id = await begun(brain, 4, "forecast")
    await brain.advance(id, 0.1, 0.2)
    before = brain.kept(id).trace
    await brain.generate(id, Generate(5, advance=False))
    assert brain.kept(id).trace == before
    await brain.generate(id, Generate(5, advance=True))
    position, layers = await shown(brain, id)
    assert (position, layers[0].steps) == (7, 4)


async def test_a_reset_forgets_what_was_before(brain: Brain) -> None:
    """At position 0 there is nothing to show, and from there on only what came after."""
    id = await begun(brain)
    assert [layer.steps for layer in (await shown(brain, id))[1]] == [0, 0]
    await brain.write(id, PROMPT)
    await brain.sessions.reset(id, "")
    assert [layer.steps for layer in (await shown(brain, id))[1]] == [0, 0]
    await brain.write(id, "ab")
    assert [layer.steps for layer in (await shown(brain, id))[1]] == [2, 2]


async def test_asking_while_steps_run(brain: Brain) -> None:
    """Each answer is of one committed record: position, steps and gates belong together."""
    id = await begun(brain, 5)
    writing = asyncio.create_task(single_steps(brain, id))
    last = 0
    while not writing.done():
        position, layers = await brain.sessions.gates(id, None, "")
        assert last <= position
        assert [layer.steps for layer in layers] == [min(position, 5)] * 2
        last = position
    await writing
    assert (await shown(brain, id))[0] == len(PROMPT)


async def test_nothing_waits_behind_those_who_look_inside(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many do and however long it takes: commits go on, and beyond a limit it is refused, not queued."""
    id = await begun(brain)
    seen, go_on = threading.Event(), threading.Event()

    def slowly(trace: bytes, last: int) -> list[Layer]:
        seen.set()
        assert go_on.wait(30)
        return []

    monkeypatch.setattr(brain.model("language").inspector, "layers", slowly)
    looks = [asyncio.create_task(brain.sessions.gates(id, None, "")) for _ in range(MAX_LOOKS)]
    try:
        await asyncio.to_thread(seen.wait, 30)
        async with asyncio.timeout(30):
            await brain.sessions.check()
            await brain.create("language")
            await brain.write(id, PROMPT * 10)  # longer than a tick: committed beside the ticks
            with pytest.raises(Overloaded):
                await asyncio.gather(brain.sessions.gates(id, None, ""), *looks)
    finally:
        go_on.set()
    assert len(await asyncio.gather(*looks)) == MAX_LOOKS
    await brain.sessions.gates(id, None, "")


async def test_sessions_that_did_not_ask_keep_nothing(brain: Brain) -> None:
    """Their records are as small as ever, and asking later is refused by name."""
    id = await brain.create("language")
    await brain.write(id, PROMPT)
    assert brain.kept(id).trace == b""
    with pytest.raises(GatesNotKept):
        await brain.sessions.gates(id, None, "")


async def test_models_without_such_operators_refuse(brain: Brain) -> None:
    """At creation, and when a session of theirs is asked."""
    with pytest.raises(UnsupportedTask) as refused:
        await begun(brain, 3, "adder")
    assert refused.value.field == "gates"
    id = await brain.create("adder")
    with pytest.raises(UnsupportedTask):
        await brain.sessions.gates(id, None, "")


async def test_limits_are_named(serve: Serve) -> None:
    """More than the setting allows, or than the session keeps; and another owner's session does not exist."""
    brain = serve(max_gates=9)
    with pytest.raises(InvalidInput, match="at most 9") as refused:
        await begun(brain, 10)
    assert refused.value.field == "gates"
    id = await begun(brain, 9)
    with pytest.raises(InvalidInput, match="from 1 to 9") as refused:
        await brain.sessions.gates(id, 10, "")
    assert refused.value.field == "last"
    with pytest.raises(UnknownSession):
        await brain.sessions.gates(id, None, "somebody else")


async def test_a_damaged_trace_is_an_error_with_a_name(brain: Brain) -> None:
    """It is not passed over, and the session itself goes on."""
    id = await begun(brain)
    await brain.write(id, "abc")
    record = brain.kept(id)
    assert brain.store.commit([moved(record, record.row, steps=0)]) == [True]
    with pytest.raises(UndecodableState):
        await brain.sessions.gates(id, None, "")


# ---- models that others made, and long chunks where answers are not bit-exact


def exploding(path: Path) -> Path:
    """A GRU whose answer [time, batch, 5] is h + e^x: infinite for an x of 100, and the state stays a number."""
    text = """gru (float[t,b,5] x, float[1,b,5] h) => (float[t,b,5] y, float[1,b,5] hn) {
        all, hn = GRU <hidden_size = 5> (x, W, R, B, , h)
        told = Squeeze (all, one)
        grown = Exp (x)
        y = Add (told, grown)
    }"""
    random = np.random.default_rng(0)
    shapes = {"W": (1, 15, 5), "R": (1, 15, 5), "B": (1, 30)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    file = adopted.written(path.parent / "foreign.onnx", adopted.model(text, one=np.array([1]), **weights))
    adopt_file(file, path.parent, Wishes(), Console(quiet=True))
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> list[LoadedModel]:
    """Adopted models around one operator."""
    folder = artifacts.repository(
        tmp_path,
        batch_last=operators.operator,
        one_step=lambda path: operators.operator(path, "GRU", "one step"),
        exploding=exploding,
    )
    return load_repository(folder, load_settings(provider="cpu"))[0]


@pytest.fixture
async def strangers(foreign: list[LoadedModel], store: Store, clock: Clock) -> AsyncIterator[Brain]:
    """A brain that serves them."""
    async with AsyncExitStack() as stack:
        brain = Brain(foreign, store, clock)
        brain.sessions.start()
        stack.push_async_callback(brain.sessions.close)
        yield brain


@pytest.mark.parametrize("model", ["batch_last", "one_step"])
async def test_other_peoples_models_are_looked_into(strangers: Brain, model: str) -> None:
    """Wherever they have their axes, and where a call is one step."""
    id = await begun(strangers, 20, model)
    chunk = np.random.default_rng(0).normal(size=(70, operators.WIDTH)).astype(np.float32)
    for part in np.split(chunk, 7):
        await strangers.sessions.advance(id, Advance((part,), LAST), "")
    position, layers = await shown(strangers, id)
    assert (position, layers[0].steps) == (70, 20)


@pytest.mark.parametrize("steps", [1, 10, 300])
async def test_what_fails_leaves_no_trace(strangers: Brain, steps: int) -> None:
    """A chunk whose last step comes to no number is not part of the session, however it was cut."""
    id = await begun(strangers, 20, "exploding")
    chunk = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    await strangers.sessions.advance(id, Advance((chunk,), LAST), "")
    before = strangers.kept(id).trace
    chunk[steps - 1] = 100
    with pytest.raises(NotFinite):
        await strangers.sessions.advance(id, Advance((chunk[:steps],), LAST), "")
    assert strangers.kept(id).trace == before
    assert (await shown(strangers, id))[1][0].steps == 20


async def test_a_long_chunk_is_not_kept_whole(serve: Serve) -> None:
    """Also where chunks are not cut, since answers are not bit-exact: those who ask for gates have theirs cut."""
    brain = serve()
    model = brain.model("language")
    model.segment_steps = 10_000  # as of a model that is not bit-exact
    id = await begun(brain, 3)
    await brain.write(id, "abcde" * 1000)
    record: Record = brain.kept(id)
    assert sum(span.steps for span in latest_spans(record.trace, 10**9)) <= 3 + 64
    assert len(record.trace) < 2 * len(record.row) + 1000
    assert (await shown(brain, id))[1][0].steps == 3
    plain = await brain.create("language")
    await brain.write(plain, "abcde" * 1000)
    assert brain.engines["language"].ticks[-1] == [5000]
