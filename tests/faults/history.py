"""What clients sent to a session and what they were told, when."""

import math
from dataclasses import dataclass, field

# Where a session stands: its position, and the sum of all that it was sent.
State = tuple[int, int]


@dataclass
class Operation:
    """One step as its client means it, however often it was sent: repeats that name a position are the same one.

    ``told``: where the session stood behind it, once that was acknowledged, at ``ended``; until then it may have been
    applied, at any time from ``began`` on, unless it is known to be ``refused``. Without ``value`` it only reads.
    """

    value: int | None
    position: int | None
    began: float
    ended: float = math.inf
    told: State | None = None
    refused: bool = False

    def after(self, state: State) -> State | None:
        """Where it takes a session that stands there; None where it does not apply."""
        position, total = state
        if self.value is None:
            return state
        if self.position is not None and self.position != position:
            return None
        return position + 1, total + self.value


@dataclass
class History:
    """All of one session; ``wrong``: what no order could explain, such as a repeat that was answered otherwise."""

    session: str
    operations: list[Operation] = field(default_factory=list)
    sent: int = 0
    replayed: int = 0
    refused: int = 0
    unknown: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """Steps that were."""
        return sum(o.told is not None and o.value is not None for o in self.operations)
