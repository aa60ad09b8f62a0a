"""The sessions of the service without HTTP: watched engines, a store that can fail, a clock moved by hand."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from service.engine.repository import LoadedModel
from service.engine.runtime import Engine
from service.errors import StoreUnavailable, UndecodableState
from service.metrics import Metrics
from service.models import Model, Models
from service.sampling import Sampling
from service.sessions.generation import Generated
from service.sessions.requests import Advance, Generate
from service.sessions.sessions import Sessions
from service.settings import load_settings
from service.state import Answer, Chunk, Record
from service.stores.base import Ended, Store
from service.views import View
from tests.support.fakes import Clock, FaultyStore, Gate, WatchedEngine

Serve = Callable[..., "Brain"]  # the fixture that starts brains over one store, with settings by name
ALL, LAST = View(every=True), View()


def numbers(*values: float) -> Chunk:
    """A chunk of one-number steps."""
    return (np.array(values, np.float32)[:, None],)


class Brain:
    """``Sessions`` with everything that a test looks at or meddles with. Start it in an event loop; close it there."""

    def __init__(self, loaded: Sequence[LoadedModel], store: Store, clock: Clock, **settings: object) -> None:
        chosen = load_settings(
            **({"provider": "cpu", "inline_ms": 0, "lone_segment_ms": 0} | settings)
        )  # gates hold threads
        self.clock, self.metrics = clock, Metrics()
        self.store = FaultyStore(store)
        watched = [LoadedModel(m.name, m.version, cast(Engine, WatchedEngine(m.engine))) for m in loaded]
        self.engines = {m.name: cast(WatchedEngine, m.engine) for m in watched}
        models = [Model(m, chosen, self.store, clock, self.metrics) for m in watched]
        self.sessions = Sessions(Models(models), self.store, chosen, clock, self.metrics)

    async def create(self, model: str = "adder", ttl_s: float | None = None, owner: str = "") -> str:
        """A new session's id."""
        return (await self.sessions.create(model, None, ttl_s, owner)).identity.id

    async def advance(
        self, id: str, *values: float, position: int | None = None, view: View = ALL, owner: str = ""
    ) -> tuple[Answer, bool]:
        """Send one-number steps; the answer, and whether it is a repeat's."""
        return await self.sessions.advance(id, Advance(numbers(*values), view, position), owner)

    async def add(self, id: str, *values: float, position: int | None = None) -> list[float]:
        """Send numbers to a session that sums; the sums after each of them."""
        answer, _ = await self.advance(id, *values, position=position)
        return sums(answer)

    async def write(self, id: str, text: str, view: View = View(top_k=1), position: int | None = None) -> Answer:  # noqa: B008 - frozen
        """Send text to a language session."""
        vocabulary = self.model("language").signature.vocabulary
        assert vocabulary is not None
        chunk = (np.array([vocabulary.index(symbol) for symbol in text]),)
        return (await self.sessions.advance(id, Advance(chunk, view, position), ""))[0]

    async def generate(self, id: str, request: Generate) -> Generated:
        """Continue a session, unstreamed."""
        return await self.sessions.generate(id, request, "")

    async def stream(self, id: str, request: Generate) -> list[Generated]:
        """Continue a session, streamed to the end."""
        return [generated async for generated in self.sessions.generate_stream(id, request, "")]

    def model(self, name: str) -> Model:
        """A model by its name."""
        return self.sessions.models.find(name)

    def kept(self, id: str) -> Record:
        """What the store holds."""
        record = self.store.load([id])[id]
        assert isinstance(record, Record)
        return record

    def metric(self, name: str, **labels: str) -> float:
        """The value of one of the service's metrics now; 0 where it was never touched."""
        return self.metrics.registry.get_sample_value(f"lstm_serve_{name}", labels) or 0.0

    def hold_loads(self) -> "tuple[Gate, Gate]":
        """From now on the first load stands at the first gate, each later one at the second."""
        gates, load, begun = (Gate(), Gate()), self.store.load, iter([0])

        def held(ids: Sequence[str]) -> Mapping[str, Record | Ended | UndecodableState | StoreUnavailable]:
            gates[next(begun, 1)].pass_through()
            return load(ids)

        for gate in gates:
            gate.shut()
        self.store.load = held  # type: ignore[method-assign]
        return gates

    async def hold_tick(self, model: str = "adder") -> "asyncio.Task[Any]":
        """Have a tick of a bystander's session stand at the engine's gate."""
        bystander = await self.create(model)
        gate = self.engines[model].gate
        gate.shut()
        call = self.write(bystander, "a") if model == "language" else self.add(bystander, 1)
        task: asyncio.Task[Any] = asyncio.create_task(call)
        await gate.reached()
        return task


def sums(answer: Answer) -> list[float]:
    """The outputs of a summing model, as numbers."""
    assert answer.outputs is not None
    return cast("list[float]", answer.outputs["y"].ravel().tolist())


def drawn(max_steps: int, seed: int = 7, *, stop: Sequence[str] = (), **options: Any) -> Generate:  # noqa: ANN401
    """A request to generate text with a seed, at temperature 1."""
    return Generate(max_steps, Sampling(1.0, 0, 1.0, seed), stop=tuple(stop), **options)


async def primed(brain: Brain, text: str = "once upon") -> str:
    """A language session that has read a text."""
    id = await brain.create("language")
    await brain.write(id, text)
    return id


def told(generated: Generated) -> tuple[object, ...]:
    """What a client sees of a whole generation, as plain values."""
    assert generated.outputs is not None
    outputs = {name: array.tolist() for name, array in generated.outputs.items()}
    return generated.text, outputs, generated.position, generated.steps, generated.finish, generated.seed
