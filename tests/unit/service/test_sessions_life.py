"""How sessions begin, rest and end."""

import asyncio

import pytest

from service.engine.repository import LoadedModel
from service.errors import InvalidInput, ModelNotLoaded, SessionEnded, UndecodableState, UnknownModel, UnknownSession
from service.sessions.sessions import SWEEP_BATCH
from tests.support.brain import Brain, Serve
from tests.support.fakes import outcome, started, turns
from tests.support.records import plain


async def test_a_new_session_is_committed_at_position_0(brain: Brain) -> None:
    """Creating commits the model's initial state, pinned to the model's fingerprint."""
    record = await brain.sessions.create("adder", "1", 60, "me")
    engine = brain.model("adder").engine
    assert plain(brain.kept(record.identity.id)) == plain(record)
    assert (record.position, record.row, record.output, record.answers) == (0, engine.initial_row, b"", ())
    assert record.identity.fingerprint == engine.fingerprint
    assert record.expires_at == brain.clock.now() + 60
    assert brain.metric("sessions_created_total", model="adder") == 1


async def test_ids_cannot_be_guessed(brain: Brain) -> None:
    """An id carries 128 random bits."""
    ids = {await brain.create() for _ in range(50)}
    assert len(ids) == 50
    assert all(len(bytes.fromhex(id)) == 16 for id in ids)


@pytest.mark.parametrize(("model", "version", "field"), [("nobody", None, "model"), ("adder", "2", "version")])
async def test_an_unknown_model_makes_no_session(brain: Brain, model: str, version: str | None, field: str) -> None:
    """A name or a version that is not in the repository is named."""
    with pytest.raises(UnknownModel) as refused:
        await brain.sessions.create(model, version, None, "")
    assert refused.value.field == field


async def test_a_ttl_beyond_the_limit_is_refused(serve: Serve) -> None:
    """No client can keep a session longer than the settings allow."""
    with pytest.raises(InvalidInput) as refused:
        await serve(max_ttl_s=100, default_ttl_s=10).create(ttl_s=101)
    assert refused.value.field == "ttl"


async def test_each_step_puts_the_expiry_off(brain: Brain) -> None:
    """Every answer tells when the session would expire, counted from its commit."""
    id = await brain.create(ttl_s=60)
    brain.clock.move(50)
    answer, _ = await brain.advance(id, 1)
    assert answer.expires_at == brain.clock.now() + 60 == brain.kept(id).expires_at
    brain.clock.move(50)
    assert await brain.add(id, 1) == [2]


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("live", [False, True])
async def test_an_expired_session_answers_with_the_reason(serve: Serve, swept: bool, live: bool) -> None:
    """Beyond its ttl a session is over, whether or not the sweeper came, and whether it was live or rested."""
    brain = serve()
    id = await brain.create(ttl_s=60)
    asked = brain if live else serve()
    brain.clock.move(60)
    if swept:
        await asked.sessions.sweep()
    for request in (asked.add(id, 1), asked.sessions.get(id, ""), asked.sessions.delete(id, "")):
        with pytest.raises(SessionEnded) as refused:
            await request
        assert refused.value.facts["reason"] == "expired"


async def test_the_sweeper_ends_what_expired_and_nothing_else(brain: Brain) -> None:
    """Only sessions without a step within their ttl are ended; they are counted, and leave the arena."""
    short, renewed, long = [await brain.create(ttl_s=ttl_s) for ttl_s in (10, 10, 100)]
    brain.clock.move(6)
    await brain.add(renewed, 1)
    brain.clock.move(6)
    await brain.sessions.sweep()
    assert brain.store.count() == 2
    assert brain.store.maintained == 1
    assert brain.metric("sessions_ended_total", reason="expired") == 1
    assert brain.metric("sessions", where="live") == 2
    assert (await brain.add(renewed, 1), await brain.add(long, 1)) == ([2], [1])
    with pytest.raises(SessionEnded):
        await brain.add(short, 1)


async def test_the_sweeper_finds_expired_sessions_behind_renewed_ones(brain: Brain) -> None:
    """However many sessions were put off, one search ends all that have expired."""
    record = await brain.sessions.create("adder", None, 10, "")
    renewed = [record.identity.id] + [await brain.create(ttl_s=10) for _ in range(SWEEP_BATCH)]
    brain.clock.move(1)
    expired = await brain.create(ttl_s=10)
    brain.clock.move(5)
    await asyncio.gather(*[brain.add(id, 1) for id in renewed])
    brain.clock.move(6)
    await brain.sessions.sweep()
    assert brain.store.count() == len(renewed)
    with pytest.raises(SessionEnded):
        await brain.add(expired, 1)


async def test_ended_sessions_are_forgotten_after_a_while(serve: Serve) -> None:
    """For ``tombstone_s`` an ended session answers with the reason; then nobody knows it."""
    brain = serve(tombstone_s=100)
    id = await brain.create()
    await brain.sessions.delete(id, "")
    brain.clock.move(100)
    await brain.sessions.sweep()
    with pytest.raises(SessionEnded):
        await brain.add(id, 1)
    brain.clock.move(1)
    await brain.sessions.sweep()
    with pytest.raises(UnknownSession):
        await brain.add(id, 1)


async def test_the_model_of_a_session_tells_what_its_inputs_look_like(brain: Brain) -> None:
    """Before a body is read, the model that the session is pinned to is found, for its owner."""
    id = await brain.create("poison", owner="me")
    assert (await brain.sessions.model_of(id, "me")).name == "poison"
    with pytest.raises(UnknownSession):
        await brain.sessions.model_of(id, "you")


async def test_a_deleted_session_answers_with_the_reason(brain: Brain) -> None:
    """After DELETE a session is over for every request."""
    id = await brain.create()
    await brain.sessions.delete(id, "")
    for request in (brain.add(id, 1), brain.sessions.get(id, ""), brain.sessions.delete(id, "")):
        with pytest.raises(SessionEnded) as refused:
            await request
        assert refused.value.facts["reason"] == "deleted"
    assert brain.metric("sessions_ended_total", reason="deleted") == 1


async def test_deleting_waits_its_turn(brain: Brain) -> None:
    """What waited before a DELETE still runs; what waited behind it is told that the session is over."""
    id = await brain.create()
    held = await brain.hold_tick()
    before, deleting, behind = await started(brain.add(id, 1), brain.sessions.delete(id, ""), brain.add(id, 1))
    brain.engines["adder"].gate.open()
    await held
    assert await before == [1]
    await deleting
    assert isinstance(await outcome(behind), SessionEnded)


async def test_an_unknown_id_is_unknown(brain: Brain) -> None:
    """An id that was never given out is told apart from a session that is over."""
    for request in (brain.add("0" * 32, 1), brain.sessions.get("0" * 32, ""), brain.sessions.delete("x", "")):
        with pytest.raises(UnknownSession):
            await request


@pytest.mark.parametrize("state", ["live", "resting", "ended"])
async def test_to_others_a_session_does_not_exist(serve: Serve, state: str) -> None:
    """A session is visible to its owner only, also after its end."""
    brain = serve()
    id = await brain.create(owner="me")
    if state == "ended":
        await brain.sessions.delete(id, "me")
    asked = serve() if state == "resting" else brain
    requests = [asked.advance(id, 1, owner="you"), asked.sessions.get(id, "you"), asked.sessions.delete(id, "you")]
    for request in requests:
        with pytest.raises(UnknownSession):
            await request


async def test_listings_show_an_owners_sessions_only(brain: Brain) -> None:
    """Pages go by id, hold what is committed, and can be narrowed to a model."""
    mine = sorted([await brain.create(owner="me"), await brain.create("poison", owner="me")])
    await brain.create(owner="you")
    await brain.advance(mine[0], 1, 2, owner="me")
    listed = await brain.sessions.page("me", None, "", 10)
    assert [(s.identity.id, s.position) for s in listed] == [(mine[0], 2), (mine[1], 0)]
    assert [s.identity.id for s in await brain.sessions.page("me", None, mine[0], 10)] == mine[1:]
    assert [s.identity.model for s in await brain.sessions.page("me", "poison", "", 10)] == ["poison"]


async def test_a_session_whose_model_is_gone_is_kept(serve: Serve, loaded: list[LoadedModel]) -> None:
    """Without its fingerprint in the repository a session is refused by name; with it, it goes on; it can be ended."""
    id = await (first := serve()).create()
    await first.add(id, 1)
    without = serve([m for m in loaded if m.name != "adder"])
    with pytest.raises(ModelNotLoaded):
        await without.add(id, 1)
    assert (await without.sessions.get(id, "")).position == 1
    assert await serve().add(id, 1) == [2]
    await without.sessions.delete(id, "")
    with pytest.raises(SessionEnded):
        await without.sessions.get(id, "")


async def test_a_small_arena_loses_nothing(serve: Serve) -> None:
    """Sessions that were let go come back with all their steps; they are loaded, not made anew."""
    brain = serve(max_live=2)
    ids = [await brain.create() for _ in range(6)]
    for n in range(3):
        assert await asyncio.gather(*[brain.add(id, 1, position=n) for id in ids]) == [[n + 1]] * 6
        assert await brain.add(ids[n], 1, position=n) == [n + 1]
    assert (brain.metric("sessions", where="live"), brain.metric("sessions", where="resting")) == (2, 4)


async def test_the_least_recently_used_sessions_rest(serve: Serve) -> None:
    """Who is in use stays live; only others cost a load."""
    brain = serve(max_live=2)
    used, idle = await brain.create(), await brain.create()
    await brain.add(used, 1)
    await brain.create()
    await brain.add(used, 1)
    assert brain.store.loads == []
    await brain.add(idle, 1)
    assert brain.store.loads == [[idle]]


async def test_resting_sessions_are_loaded_together(serve: Serve) -> None:
    """Many sessions that come back at once cost one load."""
    first = serve()
    ids = [await first.create() for _ in range(5)]
    brain = serve()
    assert await asyncio.gather(*[brain.add(id, 1) for id in [*ids, ids[0]]]) == [[1]] * 5 + [[2]]
    assert [sorted(load) for load in brain.store.loads] == [sorted(ids)]


async def test_nothing_overtakes_what_waits_for_a_load(serve: Serve) -> None:
    """Requests of one session keep their order, whenever they come while it is loaded, and after it was."""
    id = await serve().create()
    brain = serve()
    loading, later = brain.hold_loads()
    one = asyncio.create_task(brain.add(id, 1))
    await loading.reached()
    two = asyncio.create_task(brain.add(id, 10))
    await turns()
    loading.open()
    assert await one == [1]
    three = asyncio.create_task(brain.add(id, 100))
    await turns()
    later.open()
    assert (await two, await three) == ([11], [111])


async def test_a_reset_goes_back_to_the_start(brain: Brain) -> None:
    """Reset commits the initial state at position 0 and forgets the answers, in its turn."""
    id = await brain.create()
    await brain.add(id, 5, position=0)
    held = await brain.hold_tick()
    before, reset, behind = await started(brain.add(id, 1), brain.sessions.reset(id, ""), brain.add(id, 2))
    brain.engines["adder"].gate.open()
    await held
    assert (await before, (await reset).position, await behind) == ([6], 0, [2])
    assert brain.kept(id).position == 1
    positions = [record.position for (record,) in brain.store.commits]
    assert positions == [1, 1, 2, 0, 1]  # the second is another session's, which holds the tick
    assert await brain.add(id, 7, position=1) == [9]


async def test_a_reset_is_a_commit(brain: Brain) -> None:
    """After a reset the store holds the initial row, no output and no answers."""
    id = await brain.create(ttl_s=60)
    await brain.add(id, 5)
    brain.clock.move(10)
    await brain.sessions.reset(id, "")
    record = brain.kept(id)
    assert (record.row, record.output, record.answers) == (brain.model("adder").engine.initial_row, b"", ())
    assert record.expires_at == brain.clock.now() + 60


async def test_a_damaged_session_is_named(serve: Serve) -> None:
    """What the store cannot decode reaches the client as such, and the session is not ended."""
    id = await serve().create()
    brain = serve()
    brain.store.load = lambda ids: {ids[0]: UndecodableState("damaged")}  # type: ignore[method-assign]
    for request in (brain.add(id, 1), brain.sessions.get(id, "")):
        with pytest.raises(UndecodableState):
            await request
    assert await serve().add(id, 1) == [1]
