"""Generation: a loop of steps whose input is the model's own last output.

Owns when it is over (stop strings, length) and what is told of it. Each step is an item of an ordinary tick, so that
generations and everything else share batches (continuous batching).
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from service.models import Model
from service.sessions.requests import Generate
from service.state import Answer, Record, Tensors
from service.step import Feed, Item, Part, Stepped
from service.views import View

Finish = Literal["length", "stop", "interrupted"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a generation starts: a row, the output of its last step, its position, and the trace to carry on."""

    row: bytes
    output: bytes
    position: int
    trace: bytes = b""


@dataclass(frozen=True, slots=True)
class Generated:
    """What is told of a generation: the steps since the last telling, and where it stands.

    ``outputs`` holds ``tokens`` and ``logprobs`` [steps] of a language model, else the fed back output
    [steps, *step]; None before the first step. ``text`` is what may be shown of the tokens: never a stop string or the
    beginning of one. ``expires_at`` is None without a session.
    """

    outputs: Tensors | None
    text: str | None
    position: int
    steps: int
    seed: int | None
    finish: Finish | None = None
    expires_at: float | None = None
    repeated: bool = False


class StopText:
    """Decodes tokens and holds back what is, or may become, a stop string."""

    def __init__(self, vocabulary: tuple[str, ...], stop: tuple[str, ...]) -> None:
        self._vocabulary = vocabulary
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that can be shown now; ``stopped`` when a stop string is complete."""
        self._held += self._vocabulary[token]
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped, shown = True, self._held[: min(found)]
            self._held = ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of ``text`` begin ``stop``."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


Gone = Callable[[], bool]


class Generation:
    """One generation that runs. ``commits``: the record to commit each step to, and who is told of the new one."""

    def __init__(
        self,
        model: Model,
        request: Generate,
        source: Source,
        deadline: float,
        *,
        record: Record | None = None,
        committed: Callable[[Record], None] = lambda record: None,
        gone: Gone = lambda: False,
    ) -> None:
        self._model = model
        self._request = request
        self._source = source
        self._deadline = deadline
        self._record = record
        self._committed = committed
        self._gone = gone
        self._part = (Part(1, View(), request.digest),)
        self._seed = request.sampling.seed if request.sampling is not None else None
        vocabulary = model.signature.vocabulary
        self._text = StopText(vocabulary, request.stop) if vocabulary is not None else None
        self.source = source  # as it is after the last step

    async def run(self) -> AsyncIterator[Generated]:
        """Step after step, until it is over or its client has gone."""
        yield Generated(None, None, self.source.position, 0, self._seed)
        answer: Answer | None = None
        if self._record is not None:
            answer = Answer(self._source.position, 0, self._request.digest, 0.0, {}, self._seed)
        for step in range(1, self._request.max_steps + 1):
            stepped = await self._step(step, answer)
            self.source = Source(stepped.row, stepped.output, self.source.position + 1, stepped.trace)
            self._model.metrics.generated.inc()
            if stepped.record is not None:
                self._record, answer = stepped.record, stepped.record.answers[-1]
                self._committed(stepped.record)
            generated = self._told(stepped, step)
            yield generated
            if generated.finish is not None or self._gone():
                return

    async def _step(self, step: int, answer: Answer | None) -> Stepped:
        item = Item(
            row=self.source.row,
            parts=self._part,
            feed=Feed(self.source.output, self.source.position, self._request.sampling),
            record=self._record,
            extends=answer,
            trace=self.source.trace,
        )
        deadline = self._deadline if step == 1 else float("inf")  # what has begun to answer is not cut off
        return await self._model.run(item, 1, deadline, admitted=step > 1)

    def _told(self, stepped: Stepped, step: int) -> Generated:
        finish: Finish | None = "length" if step == self._request.max_steps else None
        shown = None
        if self._text is not None:
            shown = self._text.add(int(stepped.shown[0]["tokens"][0]))
            if self._text.stopped:
                finish = "stop"
            elif finish == "length":
                shown += self._text.rest()
        expires_at = stepped.record.expires_at if stepped.record is not None else None
        position = self.source.position if self._request.advance else self._source.position
        return Generated(stepped.shown[0], shown, position, 1, self._seed, finish, expires_at)


def joined(parts: list[Generated]) -> Generated:
    """A whole generation from its steps (the first part holds none)."""
    last, outputs = parts[-1], [p.outputs for p in parts if p.outputs is not None]
    text = None if last.text is None else "".join(p.text or "" for p in parts)
    whole = {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}
    return replace(last, outputs=whole, text=text, steps=len(outputs))


def retold(answer: Answer, request: Generate, vocabulary: tuple[str, ...] | None) -> Generated:
    """What is told to a repeat: the kept steps, and why they ended, found out from the request as at first."""
    outputs = answer.outputs or {}
    finish: Finish = "length" if answer.steps == request.max_steps else "interrupted"
    text = None
    if vocabulary is not None:
        decoder = StopText(vocabulary, request.stop)
        text = "".join(decoder.add(int(token)) for token in outputs["tokens"]) + decoder.rest()
        if decoder.stopped:
            finish = "stop"
    return Generated(
        outputs, text, answer.position, answer.steps, answer.seed, finish, answer.expires_at, repeated=True
    )
