"""Generation: a loop of steps whose input is the model's own last output.

Owns when it is over (stop strings, length) and what is told of it. A generation is a work like any other that goes into
the next tick again as soon as its last step is delivered, so that generations and everything else share batches
(continuous batching), and a step costs no task, no future and no turn of the event loop of its own.
"""

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from service.errors import DeadlineExceeded, ServiceError
from service.items import Feed, GrowingAnswer, Item, Part, Stepped
from service.models import Model
from service.sessions.live import Live
from service.sessions.requests import Generate
from service.state import Answer, Tensors
from service.views import View
from service.work import resolve

Finish = Literal["length", "stop", "interrupted"]


class Source(Struct, frozen=True):
    """Where a generation starts: the row and output after a last step (with the trace to carry on), its position, and
    the live session that each step is committed to; None: steps are drafts."""

    last: Stepped
    position: int
    live: Live | None = None


class Generated(Struct, frozen=True):
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


class Listener(Protocol):
    """The one whom a generation tells its steps. ``gone``: nobody listens any more."""

    @property
    def gone(self) -> bool:
        """Whether to stop between two ticks."""
        ...

    def tell(self, generated: Generated) -> bool:
        """Take what there is to tell; False where the generation has to wait."""
        ...

    def when_ready(self, go_on: Callable[[], None]) -> None:
        """Call this, once, when more can be told or nobody listens any more."""
        ...


class StopText:
    """Decodes tokens and holds back what is, or may become, a stop string."""

    def __init__(self, vocabulary: tuple[str, ...], stop: tuple[str, ...]) -> None:
        self._vocabulary = vocabulary
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that can be shown now; ``stopped`` when a stop string is complete."""
        if not self._stop:
            return self._vocabulary[token]
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


class Generation:
    """One generation that runs, as the work that waits for its next tick.

    Mutable state, touched on the event loop's thread only: ``last`` (as it is after the last step), ``_position`` and
    ``_steps`` (where that is), ``_item``, ``since``.
    """

    def __init__(self, model: Model, request: Generate, source: Source, listener: Listener, deadline: float) -> None:
        """``deadline``: until when the first step must have begun; what has begun to answer is not cut off."""
        self._model = model
        self._request = request
        self._sampling = request.sampling
        self._seed = request.sampling.seed if request.sampling is not None else None
        self._start = source.position
        self._live = source.live
        self._listener = listener
        self._deadline = deadline
        digest, vocabulary = request.digest, model.signature.vocabulary
        self._part = (Part(1, View(), digest),)
        self._text = StopText(vocabulary, request.stop) if vocabulary is not None else None
        self._over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._position, self._steps = source.position, 0
        self._answer = GrowingAnswer(source.position, digest, self._seed) if source.live else None
        self._item: Item | None = None
        self.last = source.last
        self.since = 0.0

    async def run(self) -> bool:
        """Step after step until it is over; False where its listener has gone. Raises what a step failed with."""
        self._queue(admitted=False)
        self._listener.tell(Generated(None, None, self._position, 0, self._seed))
        return await self._over

    def _queue(self, *, admitted: bool) -> None:
        self.since = self._model.clock.monotonic()
        self._model.batcher.submit(self, admitted=admitted)

    def _go_on(self) -> None:
        """Into the next tick, unless nobody listens any more or the service is closing."""
        if self._listener.gone:
            resolve(self._over, False)
        elif not self._over.done():
            try:
                self._queue(admitted=True)
            except ServiceError as error:
                resolve(self._over, error)

    # ---- as the batcher's work

    @property
    def item(self) -> Item:
        """See ``models.ItemWork``."""
        assert self._item is not None, "asked for before start()"  # noqa: S101 - an invariant, not a check of input
        return self._item

    def claim(self) -> int:
        """See ``work.Work``."""
        late = self._steps == 0 and self._model.clock.monotonic() > self._deadline
        if not late and not self._listener.gone and not self._over.done():
            return 1
        if self._steps == 0:
            self._model.metrics.dropped()
        too_late = DeadlineExceeded("the request waited too long and was dropped before it ran")
        resolve(self._over, too_late if late else False)
        return 0

    def start(self) -> None:
        """See ``work.Work``."""
        last, live = self.last, self._live
        self._item = Item(
            row=last.row,
            parts=self._part,
            feed=Feed(last.output, self._position, self._sampling),
            record=live.record if live is not None else None,
            extends=self._answer,
            trace=last.trace,
        )

    def deliver(self, outcome: Stepped | Exception) -> None:
        """See ``work.Work``."""
        if not isinstance(outcome, Stepped):
            resolve(self._over, outcome)
            return
        try:
            self._advance(outcome)
        except Exception as error:  # noqa: BLE001 - a fault of ours: whoever waits is told, and problems.py logs it
            resolve(self._over, error)

    def _advance(self, outcome: Stepped) -> None:
        """Take note of a step, tell it, and go on."""
        self.last = outcome
        self._position += 1
        self._steps += 1
        if self._live is not None and outcome.record is not None:
            self._live.committed(outcome.record)
        generated = self._told(outcome)
        ready = self._listener.tell(generated)
        if generated.finish is not None:
            resolve(self._over, True)
        elif ready:
            self._go_on()
        else:
            self._listener.when_ready(self._go_on)

    def _told(self, stepped: Stepped) -> Generated:
        outputs = stepped.shown[0]
        finish: Finish | None = "length" if self._steps == self._request.max_steps else None
        text = None
        if self._text is not None:
            text = self._text.add(int(outputs["tokens"][0]))
            if self._text.stopped:
                finish = "stop"
            elif finish == "length":
                text += self._text.rest()
        expires_at = stepped.record.expires_at if stepped.record is not None else None
        position = self._position if self._request.advance else self._start
        return Generated(outputs, text, position, 1, self._seed, finish, expires_at)


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
