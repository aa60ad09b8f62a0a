"""Kinds of generation: ended by a stop string, as a what-if, from a prompt alone, and forecasts."""

import numpy as np

from service.sessions.generation import joined
from service.sessions.requests import Advance, Generate
from service.views import View
from tests.support.brain import Brain, drawn, numbers, primed, told
from tests.support.records import plain


async def test_a_stop_string_ends_a_generation_unseen(brain: Brain) -> None:
    """A stop string across several symbols ends the text before it; its symbols are part of the session."""
    expected = (await brain.generate(await primed(brain), drawn(40))).text
    assert expected is not None
    stop = expected[9:12]
    at = expected.index(stop)
    for streamed in (False, True):
        id = await primed(brain)
        request = drawn(40, stop=["never!", stop], position=9)
        generated = joined(await brain.stream(id, request)) if streamed else await brain.generate(id, request)
        assert (generated.text, generated.finish, generated.steps) == (expected[:at], "stop", at + 3)
        assert brain.kept(id).position == 9 + at + 3
        assert told(await brain.generate(id, request)) == told(generated)


async def test_what_was_held_back_for_a_stop_string_is_told_at_the_end(brain: Brain) -> None:
    """The beginning of a stop string that never came is text like any other."""
    expected = (await brain.generate(await primed(brain), drawn(10))).text
    assert expected is not None
    for streamed in (False, True):
        request = drawn(10, stop=[expected[-2:] + "!"], position=9)
        id = await primed(brain)
        generated = joined(await brain.stream(id, request)) if streamed else await brain.generate(id, request)
        assert (generated.text, generated.finish) == (expected, "length")
        assert told(await brain.generate(id, request)) == told(generated)


async def test_a_generation_without_advance_leaves_the_session(brain: Brain) -> None:
    """A what-if tells the same text, and nothing is committed."""
    id = await primed(brain)
    before = plain(brain.kept(id))
    whatif = await brain.generate(id, drawn(10, advance=False))
    streamed = await brain.stream(id, drawn(10, advance=False))
    assert plain(brain.kept(id)) == before
    assert {step.position for step in (whatif, *streamed)} == {9}
    assert whatif.expires_at == brain.kept(id).expires_at
    assert (await brain.generate(id, drawn(10))).text == whatif.text == joined(streamed).text


async def test_a_prompt_is_continued_without_a_session(brain: Brain) -> None:
    """Prompt and continuation run as drafts, and come to what a session would have told."""
    id = await primed(brain)
    vocabulary = brain.model("language").signature.vocabulary
    assert vocabulary is not None
    prompt = (np.array([vocabulary.index(symbol) for symbol in "once upon"]),)
    commits = len(brain.store.commits)
    steps = [step async for step in brain.sessions.generate_from(brain.model("language"), prompt, drawn(10))]
    assert len(brain.store.commits) == commits
    assert joined(steps).text == (await brain.generate(id, drawn(10))).text
    assert joined(steps).expires_at is None


async def test_a_forecast_feeds_itself(brain: Brain) -> None:
    """Each predicted value is told and fed back: sending them as steps comes to the same."""
    one, other = await brain.create("forecast"), await brain.create("forecast")
    for id in (one, other):
        first, _ = await brain.sessions.advance(id, Advance(numbers(1, 2), View()), "")
    whatif = await brain.generate(one, Generate(5, advance=False))
    assert whatif.text is None
    assert whatif.outputs is not None
    (name,) = whatif.outputs
    horizon = whatif.outputs[name]
    assert first.outputs is not None
    assert horizon[0].tobytes() == first.outputs[name].tobytes()
    assert brain.kept(one).position == 2
    advanced = await brain.generate(one, Generate(5, advance=True))
    assert told(advanced)[1] == told(whatif)[1]
    await brain.sessions.advance(other, Advance((horizon,), View()), "")
    assert brain.kept(one).row == brain.kept(other).row
    assert brain.kept(one).position == 7
