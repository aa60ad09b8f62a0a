"""Whether what a session's clients were told can have happened in some order, one step after the other.

Linearizability as Herlihy and Wing define it, by the search of Wing and Gong: an operation that was answered before
another began comes before it; one that was not answered may have taken effect or not. What was done decides where the
session stands (all values are added), so sets of operations are looked at once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.faults.history import History, Operation, State


@dataclass(frozen=True)
class Verdict:
    """How many acknowledged steps are not there, and how many are there that nobody can have caused."""

    lost: int = 0
    doubled: int = 0

    @property
    def fine(self) -> bool:
        """Whether all is there once."""
        return not (self.lost or self.doubled)


def judge(history: History) -> Verdict:
    """What is wrong with a session whose last operation reads where it stands."""
    if linearizable(history.operations) and not history.wrong:
        return Verdict()
    last = history.operations[-1].told
    position = last[0] if last is not None else 0
    possible = sum(not o.refused and o.value is not None for o in history.operations)
    if position > possible:
        return Verdict(doubled=position - possible)
    return Verdict(lost=max(1, history.acknowledged - position))


@dataclass(frozen=True)
class _Done:
    """What has happened: ``required`` up to the ``first`` one that has not, ``beyond`` it, and some of ``possible``."""

    first: int = 0
    beyond: frozenset[int] = frozenset()
    possible: frozenset[int] = frozenset()

    def with_required(self, n: int) -> "_Done":
        """And one more that was acknowledged."""
        first, beyond = self.first, self.beyond | {n}
        while first in beyond:
            first, beyond = first + 1, beyond - {first}
        return replace(self, first=first, beyond=beyond)


def linearizable(operations: Sequence[Operation]) -> bool:
    """Whether some order explains all that was told, from position 0 and the sum 0 on."""
    in_time = sorted((o for o in operations if not o.refused), key=lambda o: o.began)
    required = [o for o in in_time if o.told is not None]
    possible = [o for o in in_time if o.told is None]
    seen: set[_Done] = set()
    open_: list[tuple[_Done, State]] = [(_Done(), (0, 0))]
    while open_:
        done, state = open_.pop()
        if done.first == len(required):
            return True
        if done not in seen:
            seen.add(done)
            open_ += _next(required, possible, done, state)
    return False


def _next(
    required: Sequence[Operation], possible: Sequence[Operation], done: _Done, state: State
) -> Iterator[tuple[_Done, State]]:
    """What may come next, that which was acknowledged last: it is tried first."""
    window, until = [], math.inf  # nothing comes next that began after another of them was answered
    for n in range(done.first, len(required)):
        if required[n].began > until:
            break
        if n not in done.beyond:
            window.append(n)
            until = min(until, required[n].ended)
    if any(_passed(required[n], state) for n in window):
        return
    for n, operation in enumerate(possible):
        if operation.began > until:
            break
        if n not in done.possible and (after := operation.after(state)) is not None:
            yield replace(done, possible=done.possible | {n}), after
    for n in window:
        if required[n].began <= until and required[n].told == (after := required[n].after(state)):
            assert after is not None
            yield done.with_required(n), after


def _passed(operation: Operation, state: State) -> bool:
    """Whether the session stands beyond where the operation was told that it left it: positions only grow."""
    return operation.told is not None and operation.told[0] < state[0] + (operation.value is not None)
