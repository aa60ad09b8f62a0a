"""How many sessions a machine can serve within a latency: doubling until it cannot, then halving the gap.

Knows nothing of how a number of sessions is tried.
"""

from collections.abc import Callable
from dataclasses import dataclass

MOST = 16_384  # sessions: beyond it, ports and files run out before the server does
_NEAR = 0.05  # of the answer: closer together the noise of a machine decides


@dataclass(frozen=True)
class Found:
    """``most`` sessions are within (0: not even one); ``beyond`` were not, None where as many as can be tried were."""

    most: int
    beyond: int | None


def search(within: Callable[[int], bool], first: int = 1) -> Found:
    """Try numbers of sessions."""
    most, beyond, sessions = 0, None, first
    while True:
        if within(sessions):
            most = sessions
        else:
            beyond = sessions
        if beyond is None:
            if most >= MOST:
                return Found(most, None)
            sessions = min(MOST, 2 * most)
        elif beyond - most <= max(1, _NEAR * most):
            return Found(most, beyond)
        else:
            sessions = (most + beyond) // 2
