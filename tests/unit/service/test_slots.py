"""Which slot holds which row: found by the very object, never by what it holds, and never two rows of a tick in one."""

import itertools

import numpy as np
import pytest

from service.engine.slots import Seat, Slots

FIRST = b"the row that sessions begin with"


def row(name: str) -> bytes:
    """A new object, whatever it holds."""
    return b"".join((b"row ", name.encode()))


def kept(slots: Slots, *names: str) -> list[bytes]:
    """Rows that were computed from the first one, and are held."""
    seats = slots.seat([FIRST] * len(names))
    assert seats is not None
    rows = [row(name) for name in names]
    slots.keep(rows, seats, [True] * len(rows))
    return rows


def seated(slots: Slots, *rows: bytes) -> list[Seat]:
    """The seats of a tick, for which there is room."""
    seats = slots.seat(rows)
    assert seats is not None
    return seats


def test_a_row_is_found_by_its_very_object() -> None:
    """Equal bytes that come from elsewhere, such as the store, are put there anew."""
    slots = Slots(8, FIRST)
    (held,) = kept(slots, "a")
    (found,) = seated(slots, held)
    assert (found.source, found.target, found.fresh) == (found.source, found.source, False)
    slots.keep([row("a next")], [found], [True])
    (other,) = seated(slots, row("a"))
    assert (other.fresh, other.source) == (True, other.target)


def test_a_row_that_was_used_is_held_no_more() -> None:
    """Its slot is its successor's: whoever comes with it again, after a failed commit, comes with a fresh row."""
    slots = Slots(8, FIRST)
    (held,) = kept(slots, "a")
    (seat,) = seated(slots, held)
    (again,) = seated(slots, held)  # while that tick runs
    assert (again.fresh, again.target == seat.target) == (True, False)
    slots.keep([row("b")], [seat], [True])
    assert seated(slots, held)[0].fresh


def test_the_first_row_is_there_for_good() -> None:
    """New sessions share it, any number of them in one tick, and it is never let go."""
    slots = Slots(4, FIRST)
    for n in range(5):
        seats = seated(slots, FIRST, FIRST, FIRST)
        assert [seat.source for seat in seats] == [0, 0, 0]
        assert not any(seat.fresh for seat in seats)
        assert sorted(seat.target for seat in seats) == [1, 2, 3]
        slots.keep([row(f"{n} {i}") for i in range(3)], seats, [True] * 3)


def test_a_row_that_comes_twice_in_a_tick_is_read_twice_and_has_two_successors() -> None:
    """Two items may begin at one row: a session's and a what-if's."""
    slots = Slots(8, FIRST)
    (held,) = kept(slots, "a")
    one, two = seated(slots, held, held)
    assert one.source == two.source
    assert one.target != two.target
    assert not one.fresh
    assert not two.fresh


def test_the_least_recently_used_is_let_go() -> None:
    """Where no slot is free, the row that nobody came with for longest gives its own."""
    slots = Slots(4, FIRST)
    a, b, c = kept(slots, "a", "b", "c")
    (seat,) = seated(slots, a)
    a2 = row("a2")
    slots.keep([a2], [seat], [True])
    (new,) = seated(slots, row("d"))
    d = row("d next")
    slots.keep([d], [new], [True])
    assert [s.fresh for s in seated(slots, c, a2, d)] == [False] * 3
    assert slots.seat([b]) is None  # all slots are in that tick


def test_what_is_put_there_first_overwrites_nothing_that_the_tick_reads() -> None:
    """Fresh rows never go where a row of the same tick lies."""
    slots = Slots(4, FIRST)
    a, b, _ = kept(slots, "a", "b", "c")
    seats = seated(slots, row("new"), a, b)
    assert [seat.fresh for seat in seats] == [True, False, False]
    assert seats[0].target not in {seats[1].source, seats[2].source}


def test_a_tick_for_which_there_is_no_room_changes_nothing() -> None:
    """It is told so, and the rows that are held stay."""
    slots = Slots(4, FIRST)
    a, b = kept(slots, "a", "b")
    assert slots.seat([a, row("1"), row("2"), row("3")]) is None
    assert [seat.fresh for seat in seated(slots, a, b)] == [False, False]


def test_slots_of_rows_that_came_to_nothing_are_free() -> None:
    """Of rows that are not finite, and of ticks that failed."""
    slots = Slots(3, FIRST)
    for _ in range(5):
        slots.give_up(seated(slots, FIRST, FIRST))
        seats = seated(slots, FIRST, FIRST)
        slots.keep([row("bad"), row("good")], seats, [False, True])


def test_equal_rows_that_are_one_object_hold_one_slot() -> None:
    """Rows of one byte are the same object wherever they come from."""
    slots = Slots(4, FIRST)
    for _ in range(5):
        seats = seated(slots, FIRST, FIRST)
        slots.keep([b"x", b"x"], seats, [True, True])
    assert len(seated(slots, row("1"), row("2"), row("3"))) == 3


@pytest.mark.parametrize("seed", range(5))
def test_two_ticks_under_way_never_share_a_slot(seed: int) -> None:
    """Whatever order ticks begin and end in, each row's slot holds what it should: played with a list as memory."""
    random, fresh = np.random.default_rng(seed), itertools.count()
    slots, memory = Slots(9, FIRST), [b""] * 9
    memory[0] = FIRST
    sessions = [FIRST] * 12
    under_way: list[tuple[list[int], list[Seat], list[bytes]]] = []
    for _ in range(500):
        if len(under_way) == 2 or (under_way and random.random() < 0.4):
            chosen, seats, rows = under_way.pop(0)
            good = [bool(random.random() < 0.8) for _ in rows]
            slots.keep(rows, seats, good)
            for session, new, ok in zip(chosen, rows, good, strict=True):
                if ok and random.random() < 0.9:  # else its commit failed
                    sessions[session] = new
        busy = {session for chosen, _, _ in under_way for session in chosen}
        idle = [session for session in range(len(sessions)) if session not in busy]
        chosen = random.permutation(idle)[: random.integers(1, 4)].tolist()
        seats = slots.seat([sessions[session] for session in chosen]) or []
        if not seats:
            continue
        for session, seat in zip(chosen, seats, strict=True):
            if seat.fresh:
                memory[seat.target] = sessions[session]
        read = [memory[seat.source] for seat in seats]
        assert read == [sessions[session] for session in chosen]
        rows = [row(str(next(fresh))) for _ in chosen]
        for seat, new in zip(seats, rows, strict=True):
            memory[seat.target] = new
        under_way.append((chosen, seats, rows))
