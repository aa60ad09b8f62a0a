"""Predictions and generations that no session remembers: each runs from the model's initial state."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from service.clock import Clock
from service.errors import TooLarge
from service.items import Stepped
from service.models import Model
from service.sessions.caller import Caller
from service.sessions.generation import Generated, Generation, Source
from service.sessions.requests import Generate
from service.sessions.turns import run_segments
from service.settings import Settings
from service.state import Chunk, Tensors
from service.views import View


class Stateless:
    """What can be asked without a session, and the limits of every request."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def predict(self, model: Model, chunks: Sequence[Chunk], view: View) -> list[Tensors]:
        """Run whole sequences from the initial state; what is shown of each."""
        if len(chunks) > self._settings.max_sequences:
            raise TooLarge(f"at most {self._settings.max_sequences} sequences in one request", field="inputs")
        self._check_steps(sum(len(chunk[0]) for chunk in chunks))
        deadline = self._deadline()
        begin = Stepped(model.engine.initial_row, b"", ())
        runs = [asyncio.ensure_future(run_segments(model, begin, chunk, view, deadline)) for chunk in chunks]
        try:
            return [done.shown[0] for done in await asyncio.gather(*runs)]
        finally:  # after a failure, or when the client has gone, nobody wants the others
            for run in runs:
                run.cancel()

    def generate_from(self, model: Model, prompt: Chunk, request: Generate) -> "AsyncIterator[Generated]":
        """Continue a prompt from the initial state, without a session."""
        self._check_steps(len(prompt[0]))
        self._check_generation(model, request)
        return self._generated_from(model, prompt, request)

    async def _generated_from(self, model: Model, prompt: Chunk, request: Generate) -> "AsyncIterator[Generated]":
        deadline = self._deadline()
        begin = Stepped(model.engine.initial_row, b"", ())
        start = await run_segments(model, begin, prompt, View(), deadline)
        caller = Caller(self._settings.queue_timeout_s)
        generation = Generation(model, request, Source(start, len(prompt[0])), caller, deadline=float("inf"))
        async for generated in caller.read(asyncio.ensure_future(generation.run())):
            yield generated

    # ---- limits

    def _deadline(self) -> float:
        return self._clock.monotonic() + self._settings.queue_timeout_s

    def _check_steps(self, steps: int) -> None:
        if steps > self._settings.max_steps:
            raise TooLarge(f"at most {self._settings.max_steps} steps in one request, got {steps}", field="inputs")

    def _check_generation(self, model: Model, request: Generate) -> None:
        model.check_generates()
        if request.max_steps > self._settings.max_steps:
            raise TooLarge(f"max_steps is at most {self._settings.max_steps}", field="max_steps")
