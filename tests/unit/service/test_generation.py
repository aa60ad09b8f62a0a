"""Generation: sampling text in a session, and forecasts that leave it where it was."""

import asyncio

import pytest

from service.errors import (
    NothingToContinue,
    PositionConflict,
    StoreUnavailable,
    TooLarge,
    UnsupportedTask,
)
from service.sampling import Sampling
from service.sessions.generation import Generated, StopText, joined
from service.sessions.requests import Generate
from tests.support.brain import Brain, Serve, drawn, numbers, primed, told
from tests.support.fakes import outcome, started
from tests.support.records import plain


async def test_the_same_seed_draws_the_same_text(brain: Brain) -> None:
    """Sessions with one history and one seed go on alike; another seed goes elsewhere."""
    ids = [await primed(brain) for _ in range(3)]
    first, again = [told(await brain.generate(id, drawn(30))) for id in ids[:2]]
    other = told(await brain.generate(ids[2], drawn(30, seed=8)))
    assert first == again
    assert first[0] != other[0]
    assert first[2:] == (39, 30, "length", 7)


async def test_a_generation_does_not_depend_on_its_batch_mates(brain: Brain) -> None:
    """What is drawn in a tick shared with others is what is drawn alone."""
    alone = told(await brain.generate(await primed(brain), drawn(12)))
    ids = [await primed(brain), *[await primed(brain, text) for text in ("the cat", "a", "zzz")]]
    together = await asyncio.gather(*[brain.generate(id, drawn(12, seed=7 + i)) for i, id in enumerate(ids)])
    assert told(together[0]) == alone
    assert max(len(tick) for tick in brain.engines["language"].ticks) == 4


async def test_generated_text_becomes_part_of_the_session(brain: Brain) -> None:
    """Generating commits what reading the same text would have committed."""
    written, read = await primed(brain), await primed(brain)
    generated = await brain.generate(written, drawn(10))
    assert generated.text is not None
    await brain.write(read, generated.text)
    assert brain.kept(written).row == brain.kept(read).row
    assert brain.kept(written).output == brain.kept(read).output
    assert brain.metric("generated_total", model="language") == 10


async def test_an_unstreamed_generation_is_one_commit(brain: Brain) -> None:
    """All its steps are committed, or none."""
    id = await primed(brain)
    brain.store.commits.clear()
    await brain.generate(id, drawn(10))
    assert len(brain.store.commits) == 1


async def test_a_streamed_generation_commits_each_step_before_it_tells_it(brain: Brain) -> None:
    """At no moment has a client seen a step that the store has not."""
    id = await primed(brain)
    brain.store.commits.clear()
    positions = []
    async for step in brain.sessions.generate_stream(id, drawn(5), ""):
        assert brain.kept(id).position >= step.position
        positions.append(step.position)
    assert positions == [9, 10, 11, 12, 13, 14]
    assert len(brain.store.commits) == 5


async def test_streamed_and_unstreamed_come_to_the_same(brain: Brain) -> None:
    """A stream, joined, tells what the whole answer tells, and leaves the same record."""
    whole, streamed = await primed(brain), await primed(brain)
    expected = await brain.generate(whole, drawn(20))
    assert told(joined(await brain.stream(streamed, drawn(20)))) == told(expected)
    assert brain.kept(streamed).row == brain.kept(whole).row
    assert plain(brain.kept(streamed).answers[0]) == plain(brain.kept(whole).answers[0])


@pytest.mark.parametrize("cut", [1, 7])
async def test_a_broken_generation_goes_on_as_if_it_had_not(brain: Brain, cut: int) -> None:
    """With the same seed and position a generation continues to what it would have been without the break."""
    whole, broken = await primed(brain), await primed(brain)
    expected = await brain.generate(whole, drawn(16))
    first = await brain.generate(broken, drawn(cut))
    second = await brain.generate(broken, drawn(16 - cut, position=9 + cut))
    assert (first.text or "") + (second.text or "") == expected.text
    assert brain.kept(broken).row == brain.kept(whole).row


async def test_a_client_that_goes_stops_its_stream(brain: Brain) -> None:
    """What was told was committed and can be told again; nothing is generated for nobody."""
    id = await primed(brain)
    steps = brain.sessions.generate_stream(id, drawn(100, position=9), "")
    seen = [await anext(steps) for _ in range(4)]
    engine = brain.engines["language"]
    engine.gate.shut()
    await engine.gate.reached()
    await steps.aclose()  # type: ignore[attr-defined]  # it is a generator
    engine.gate.open()
    again = await brain.generate(id, drawn(100, position=9))
    assert again.repeated
    assert again.finish == "interrupted"
    assert again.steps < 10
    assert again.text is not None
    assert again.text.startswith("".join(step.text or "" for step in seen))
    assert brain.kept(id).position == again.position


async def test_a_client_that_goes_before_its_turn_generates_nothing(brain: Brain) -> None:
    """A generation that waits is dropped like any other request."""
    id = await primed(brain)
    held = await brain.hold_tick("language")
    before, gone, behind = await started(brain.write(id, "a"), brain.generate(id, drawn(50)), brain.write(id, "b"))
    gone.cancel()
    brain.engines["language"].gate.open()
    await asyncio.gather(held, before, behind)
    assert brain.kept(id).position == 11
    assert brain.metric("dropped_total") == 1


async def test_a_client_that_goes_leaves_an_unstreamed_generation_undone(brain: Brain) -> None:
    """All or nothing: what nobody waits for is not committed."""
    id = await primed(brain)
    engine = brain.engines["language"]
    engine.gate.shut()
    (gone,) = await started(brain.generate(id, drawn(50)))
    await engine.gate.reached()
    gone.cancel()
    assert isinstance(await outcome(gone), asyncio.CancelledError)
    engine.gate.open()
    assert (await brain.write(id, "a")).position == 10


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_gets_the_kept_answer(brain: Brain, stream: bool) -> None:
    """The same generation at the same position is told again; nothing moves."""
    id = await primed(brain)
    first = joined(await brain.stream(id, drawn(8, position=9)))
    before = plain(brain.kept(id))
    request = drawn(8, position=9)
    again = (await brain.stream(id, request))[0] if stream else await brain.generate(id, request)
    assert told(again) == told(first)
    assert again.repeated
    assert plain(brain.kept(id)) == before


async def test_a_seed_that_was_drawn_belongs_to_the_answer(brain: Brain) -> None:
    """Who named no seed gets, as a repeat, what was drawn the first time, with the seed."""
    id = await primed(brain)
    first = await brain.generate(id, drawn(8, seed=123, seeded=False, position=9))
    again = await brain.generate(id, drawn(8, seed=456, seeded=False, position=9))
    assert told(again) == told(first)
    assert again.seed == 123


@pytest.mark.parametrize("other", [drawn(9, position=9), drawn(8, seed=8, position=9), drawn(8, stop="x", position=9)])
async def test_another_generation_at_an_old_position_is_a_conflict(brain: Brain, other: Generate) -> None:
    """Length, seed and stop strings make another request."""
    id = await primed(brain)
    await brain.generate(id, drawn(8, position=9))
    with pytest.raises(PositionConflict):
        await brain.generate(id, other)


async def test_a_greedy_generation_needs_no_luck(brain: Brain) -> None:
    """Temperature 0 takes the most likely symbol whatever the seed."""
    texts = {
        (await brain.generate(await primed(brain), Generate(10, Sampling(0.0, 0, 1.0, seed)))).text for seed in (1, 2)
    }
    assert len(texts) == 1


async def test_nothing_can_be_continued_before_the_first_step(brain: Brain) -> None:
    """A session at position 0 has seen nothing to go on from."""
    id = await brain.create("language")
    for request in (brain.generate(id, drawn(3)), brain.stream(id, drawn(3))):
        with pytest.raises(NothingToContinue):
            await request


async def test_only_models_that_can_be_fed_back_generate(brain: Brain) -> None:
    """A model without a task has nothing to feed itself with."""
    id = await brain.create("adder")
    await brain.add(id, 1)
    with pytest.raises(UnsupportedTask):
        await brain.generate(id, Generate(3))
    with pytest.raises(UnsupportedTask):
        brain.sessions.generate_from(brain.model("adder"), numbers(1), Generate(3))


async def test_a_generation_beyond_the_limit_is_refused(serve: Serve) -> None:
    """``max_steps`` of the settings bounds a generation, too."""
    brain = serve(max_steps=16)
    id = await primed(brain)
    with pytest.raises(TooLarge) as refused:
        await brain.generate(id, drawn(17))
    assert refused.value.field == "max_steps"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_store_that_fails_ends_a_generation_where_it_was_committed(brain: Brain, stream: bool) -> None:
    """Nothing is told that was not committed; afterwards the session goes on from its last commit."""
    id = await primed(brain)
    brain.store.commits.clear()
    fails_at = 3 if stream else 1
    brain.store.before_commit = lambda: setattr(brain.store, "commits_fail", len(brain.store.commits) >= fails_at)
    seen: list[Generated] = []

    async def streamed() -> None:
        async for step in brain.sessions.generate_stream(id, drawn(5), ""):
            seen.append(step)

    with pytest.raises(StoreUnavailable):
        await (streamed() if stream else brain.generate(id, drawn(5)))
    brain.store.before_commit = lambda: None
    brain.store.commits_fail = False
    assert brain.kept(id).position == 9 + len(seen[1:])
    assert len(seen) == (3 if stream else 0)
    await brain.write(id, "a")


async def test_a_fault_of_ours_leaves_nobody_waiting(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong when a step is told ends the generation and is told itself; the session goes on."""
    id = await primed(brain)

    def broken(self: StopText, token: int) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(StopText, "add", broken)
    with pytest.raises(ZeroDivisionError):
        await brain.stream(id, drawn(5))
    monkeypatch.undo()
    assert (await brain.generate(id, drawn(5))).position == 15
