"""Sessions whose rows stay on the device: what is committed counts, whatever lies there."""

import asyncio
from pathlib import Path

import pytest

from service.engine.repository import LoadedModel
from service.engine.runtime import load_engine
from service.errors import NotFinite, StoreUnavailable
from service.settings import load_settings
from tests.support import artifacts
from tests.support.artifacts import POISON
from tests.support.brain import Brain, Serve, drawn, primed, told
from tests.support.gpu import resident


@pytest.fixture
def kept_models(loaded: list[LoadedModel]) -> list[LoadedModel]:
    """All small artifacts, their rows staying where they can, in fewer slots than there are sessions."""
    return [
        LoadedModel(m.name, m.version, resident(m.engine, 6) if m.engine.signature.batched else m.engine)
        for m in loaded
    ]


@pytest.fixture
async def brain(serve: Serve, kept_models: list[LoadedModel]) -> Brain:
    """Sessions over resident engines."""
    return serve(kept_models, overlap="on")


def uploads(brain: Brain, model: str = "adder") -> int:
    """How many rows were put on the device so far."""
    count: int = brain.engines[model].uploaded
    return count


async def test_a_sessions_row_stays_from_step_to_step(brain: Brain) -> None:
    """After it was created, nothing of a session's state is sent to the device, whatever is asked of it."""
    id = await brain.create()
    begun = uploads(brain)
    assert await brain.add(id, 1) == [1]
    assert await brain.add(id, 1, 2) == [2, 4]
    assert await brain.add(id, *[1] * 200) == list(range(5, 205))  # in segments
    words = await primed(brain)
    begun_words = uploads(brain, "language")
    await brain.stream(words, drawn(9))
    await brain.generate(words, drawn(9))
    assert (uploads(brain), uploads(brain, "language")) == (begun, begun_words)


async def test_after_a_commit_that_failed_the_committed_row_counts(brain: Brain) -> None:
    """What was computed and not committed is never gone on from."""
    id = await brain.create()
    await brain.add(id, 5)
    brain.store.commits_fail = True
    with pytest.raises(StoreUnavailable):
        await brain.add(id, 100)
    brain.store.commits_fail = False
    assert await brain.add(id, 1) == [6]


async def test_after_another_replica_moved_a_session_its_row_counts(
    serve: Serve, loaded: list[LoadedModel], brain: Brain
) -> None:
    """The row that lies on the device is of the same session and the same position, and still not the truth."""
    other = serve(loaded)
    id = await brain.create()
    await brain.add(id, 5)
    assert await other.add(id, 10) == [15]
    assert await brain.add(id, 1) == [16]


async def test_after_a_step_that_was_not_finite_the_session_goes_on(brain: Brain) -> None:
    """It keeps the state it had."""
    id = await brain.create("poison")
    await brain.add(id, 5)
    with pytest.raises(NotFinite):
        await brain.add(id, POISON)
    assert await brain.add(id, 1) == [6]


async def test_a_what_if_leaves_the_session_where_it_was(brain: Brain, serve: Serve, loaded: list[LoadedModel]) -> None:
    """Its rows are nobody's: the session's next step is what it would have been."""
    other = serve(loaded)
    answers = []
    for one in (brain, other):
        id = await primed(one)
        whole = await one.generate(id, drawn(5, advance=False))
        more = await one.generate(id, drawn(5))
        answers.append((told(whole), told(more)))
    assert answers[0] == answers[1]


async def test_sessions_of_float16_come_to_the_same(serve: Serve, loaded: list[LoadedModel], tmp_path: Path) -> None:
    """What `lstm-serve quantize --type float16` makes is generated, tried out in what-ifs, and committed alike."""
    (source,) = (model.engine.path for model in loaded if model.name == "language")
    engine = load_engine(artifacts.halved(tmp_path / "model.onnx", source), load_settings(provider="cpu"))
    whole, kept = [], resident(engine, 4)
    for one in (engine, kept):
        brain = serve([LoadedModel("language", "1", one)], overlap="on")
        ids = [await primed(brain, text) for text in ("once upon", "the ", "a time")]
        for id in ids:
            await brain.generate(id, drawn(5, advance=False))
            whole.append(told(await brain.generate(id, drawn(20))))
            whole.append((brain.kept(id).row, *(await brain.write(id, "x")).outputs.values()))
    half = len(whole) // 2
    assert str(whole[:half]) == str(whole[half:])
    assert len(brain.kept(ids[0]).row) == 2 * 2 * 16 * 2  # h and c of two layers


async def test_many_sessions_in_few_slots(brain: Brain) -> None:
    """More sessions than slots, all at once: each has its own sum."""
    ids = [await brain.create() for _ in range(20)]
    for times in range(1, 6):
        answers = await asyncio.gather(*[brain.add(id, n) for n, id in enumerate(ids)])
        assert answers == [[times * n] for n in range(20)]
