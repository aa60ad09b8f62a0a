"""A session whose every answer is compared with the exact sum of what it was sent (``witness_model.py``).

Owns what the sum must be. Now and then a request is sent again as it was: its answer must come again, byte for byte,
and move nothing.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass

from bench.options import Address
from bench.session import Session, document, kind_of
from bench.witness_model import MODEL, TOTAL

REPEATS = 0.01  # of the requests are sent again
_REPEAT_DIFFERS = "repeat-differs"


@dataclass(frozen=True)
class Chunks:
    """Inputs of ``steps`` steps each, written beforehand, and what each adds to the sum."""

    steps: int
    written: list[bytes]
    worth: list[int]

    @classmethod
    def drawn(cls, steps: int, chance: random.Random, variety: int = 64) -> "Chunks":
        """Whole numbers from 1 to 999: whatever is lost or doubled changes the sum."""
        drawn = [[chance.randrange(1, 1_000) for _ in range(steps)] for _ in range(variety)]
        return cls(steps, [f'"inputs":{numbers}'.encode() for numbers in drawn], [sum(numbers) for numbers in drawn])


class Witness(Session):
    """A session of the model ``witness``."""

    def __init__(self, address: Address, chunks: Chunks, chance: random.Random) -> None:
        super().__init__(address, MODEL, chunks.written, chunks.steps, chance.randrange(len(chunks.written)))
        self._worth = chunks.worth
        self._chance = chance
        self._total = 0
        self._told = b""  # the last answer
        self._repeating = False
        self.mortal = False  # it has a short ttl

    def send(self, began: float) -> None:
        """Send the next steps, or those before once more."""
        self._repeating = bool(self._told) and self._chance.random() < REPEATS
        if self._repeating:
            self.position -= self._steps
            self._total -= self._worth[self._place()]
        super().send(began)

    async def step(self) -> str | None:
        """Once, away from the measured path; the name of what went wrong."""
        over: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.done = lambda _, problem: over.set_result(problem)
        self.send(time.perf_counter())
        return await over

    async def gone(self, reason: str) -> str | None:
        """Whether the service says that it ended, and why; the name of what it says instead."""
        try:
            status, body = await self._call(b"GET")
        except OSError:
            return "connection-lost"
        finally:
            self.hang_up()
        return None if (status, document(body).get("reason")) == (410, reason) else f"not-{reason}"

    async def stands(self) -> str | None:
        """Whether it is where its answers said; the name of a problem."""
        try:
            status, body = await self._call(b"GET")
        except OSError:
            return "connection-lost"
        if status != 200:
            return kind_of(status, body)
        return None if document(body).get("position") == self.position else "wrong-position"

    def _place(self) -> int:
        return (self._first + self.position // self._steps) % len(self._worth)

    def _problem(self, status: int, body: bytes) -> str | None:
        if status != 200:
            return self._refused(status, body)
        due = self._total + self._worth[self._place()]
        told = json.loads(body)
        if (told["position"], told["outputs"][TOTAL]) != (self.position + self._steps, [float(due)]):
            return "wrong-sum"
        if self._repeating and body != self._told:
            return _REPEAT_DIFFERS
        self._total, self._told = due, body
        return None
