"""Whether what a session's clients were told can have happened in some order, one step after the other.

Linearizability as Herlihy and Wing define it, by the search of Wing and Gong: an operation that was answered before
another began comes before it; one that was not answered may have taken effect or not. What was done decides where the
session stands (all values are added), so sets of operations are looked at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


def linearizable(operations: Sequence[Operation]) -> bool:
    """Whether some order explains all that was told, from position 0 and the sum 0 on."""
    possible = [o for o in operations if not o.refused]
    required = sum(1 << n for n, o in enumerate(possible) if o.told is not None)
    seen: set[int] = set()
    open_: list[tuple[int, State]] = [(0, (0, 0))]
    while open_:
        done, state = open_.pop()
        if done & required == required:
            return True
        if done in seen:
            continue
        seen.add(done)
        open_ += _next(possible, done, state)
    return False


def _next(operations: Sequence[Operation], done: int, state: State) -> list[tuple[int, State]]:
    """What may come next, that which was acknowledged last: it is tried first."""
    left = [(n, o) for n, o in enumerate(operations) if not done >> n & 1]
    if any(_passed(o, state) for _, o in left):
        return []
    until = min((o.ended for _, o in left), default=0.0)
    found = []
    for n, operation in sorted(left, key=lambda each: each[1].told is not None):
        after = operation.after(state) if operation.began <= until else None
        if after is not None and operation.told in (None, after):
            found.append((done | 1 << n, after))
    return found


def _passed(operation: Operation, state: State) -> bool:
    """Whether the session stands beyond where the operation was told that it left it: positions only grow."""
    return operation.told is not None and operation.told[0] < state[0] + (operation.value is not None)
