"""The judge of the fault suite: it takes what can have happened, and finds what was lost, doubled or out of order."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.checker import Verdict, judge, linearizable
from tests.faults.history import History, Operation
from tests.faults.report import HEAD, Row, verdict


def sequence(values: list[int]) -> list[Operation]:
    """Steps that were answered one after the other, and a last look at the session."""
    operations, total = [], 0
    for n, value in enumerate(values):
        total += value
        operations.append(Operation(value, n, 2.0 * n, 2.0 * n + 1, (n + 1, total)))
    at = 2.0 * len(values)
    return [*operations, Operation(None, None, at, at + 1, (len(values), total))]


def unanswered(value: int, began: float, position: int | None = None) -> Operation:
    """A step of which nobody knows."""
    return Operation(value, position, began)


def test_what_happened_in_order_is_fine() -> None:
    """With positions and without."""
    operations = sequence([3, 4, 5])
    assert linearizable(operations)
    operations[1].position = None
    assert judge(History("s", operations)) == Verdict()


def test_a_lost_step_is_found() -> None:
    """It was acknowledged, and the session stands one before it."""
    operations = sequence([3, 4, 5])
    operations[-1].told = (2, 7)
    assert judge(History("s", operations)) == Verdict(lost=1)


def test_a_doubled_step_is_found() -> None:
    """The session stands further than all that was sent to it."""
    operations = sequence([3, 4, 5])
    operations[-1].told = (4, 17)
    assert judge(History("s", operations)) == Verdict(doubled=1)


def test_a_wrong_sum_is_found() -> None:
    """As many steps as there should be, and others."""
    operations = sequence([3, 4, 5])
    operations[-1].told = (3, 13)
    assert not judge(History("s", operations)).fine


def test_steps_out_of_order_are_found() -> None:
    """The second was answered as if it were the first, though the first was answered before it began."""
    operations = [
        Operation(3, None, 0, 1, (2, 7)),
        Operation(4, None, 2, 3, (1, 4)),
        Operation(None, None, 4, 5, (2, 7)),
    ]
    assert not linearizable(operations)
    operations[1].began = 0.5  # at the same time: either may have come first
    assert linearizable(operations)


@pytest.mark.parametrize(("last", "fine"), [((2, 7), True), ((3, 17), True), ((3, 16), False), ((1, 3), False)])
def test_what_was_not_answered_may_have_happened(last: tuple[int, int], fine: bool) -> None:
    """Or not, at any time from its beginning on; and nothing else may."""
    operations = [*sequence([3, 4])[:2], unanswered(10, 0.5), Operation(None, None, 9, 10, last)]
    assert linearizable(operations) == fine


def test_what_was_not_answered_may_happen_late() -> None:
    """After others that began behind it."""
    operations = [unanswered(10, 0), *sequence([3, 4])[:2], Operation(None, None, 9, 10, (3, 17))]
    assert linearizable(operations)


def test_it_cannot_happen_before_it_begins() -> None:
    """What an answer tells cannot come from a later request."""
    operations = [Operation(3, None, 0, 1, (2, 13)), unanswered(10, 5)]
    assert not linearizable(operations)


def test_a_position_holds_a_step_in_its_place() -> None:
    """A step that names one is not applied anywhere else."""
    read = Operation(None, None, 9, 10, (3, 17))
    assert linearizable([*sequence([3, 4])[:2], unanswered(10, 0, position=2), read])
    assert not linearizable([*sequence([3, 4])[:2], unanswered(10, 0, position=7), read])


def test_what_was_refused_has_not_happened() -> None:
    """It explains nothing."""
    refused = Operation(10, None, 0, refused=True)
    assert judge(History("s", [*sequence([3])[:1], refused, Operation(None, None, 9, 10, (2, 13))])).doubled == 1


def test_an_answer_that_no_order_explains_is_a_fault() -> None:
    """Such as a repeat that was answered otherwise."""
    assert not judge(History("s", sequence([3]), wrong=["told 4"])).fine


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_every_true_history_is_taken_and_every_tampered_one_is_not(seed: int) -> None:
    """Concurrent clients of one session, some of whose answers are lost: made by applying steps in some order."""
    chance = random.Random(seed)
    operations, total, position, clock = [], 0, 0, 0.0
    for n in range(chance.randrange(1, 14)):
        value, took = 2**n, chance.random() * 3
        clock += chance.random()
        operation = Operation(value, position if chance.random() < 0.5 else None, clock - chance.random())
        operations.append(operation)
        if chance.random() < 0.2:  # refused, or nobody knows, and it was not applied
            operation.refused = chance.random() < 0.5
            continue
        position, total = position + 1, total + value
        if chance.random() < 0.8:
            operation.told, operation.ended = (position, total), clock + took
    operations.append(Operation(None, None, clock + 4, clock + 5, (position, total)))
    chance.shuffle(operations)
    operations.sort(key=lambda o: (o.told is not None and o.value is None, chance.random()))
    assert linearizable(operations)
    told = [o for o in operations if o.told is not None and o.value is not None]
    if told:
        victim = chance.choice(told)
        assert victim.told is not None
        victim.told = victim.told[0], victim.told[1] + 1
        assert not linearizable(operations)


def rows(change: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """A report of one fault."""
    row = Row("a fault", 2, [History("s", sequence([1, 2]), sent=3, replayed=1)])
    change(row)
    return [row]


def test_the_report_ends_in_a_verdict() -> None:
    """Passed where nothing is wrong; else with what is."""
    assert rows()[0].line() == "| a fault | 2 | 3 | 2 | 1 | 0 | 0 | 0 | 0 |"
    assert rows()[0].line().count("|") == HEAD.count("|")
    assert verdict(rows(), []) == "passed: 1 faults, 2 acknowledged steps, 0 lost, 0 doubled"
    assert verdict(rows(), ["x"]).endswith("; not done: x")

    def break_(row: Row) -> None:
        row.histories[0].operations[-1].told = (1, 1)

    assert verdict(rows(break_), []).startswith("FAILED: 1 faults, 2 acknowledged steps, 1 lost, 0 doubled")

    def fail(row: Row) -> None:
        row.failed = "it did not start"

    assert verdict(rows(fail), []).startswith("FAILED")
    assert math.isinf(Operation(1, None, 0.0).ended)
