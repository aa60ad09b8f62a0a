"""Small artifacts loaded once, and brains over each kind of store."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from service.engine.repository import LoadedModel, load_repository
from service.settings import load_settings
from service.stores.base import Store
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore
from tests.support import artifacts, foreign
from tests.support.batching import Bench
from tests.support.brain import Brain, Serve
from tests.support.fakes import PATIENCE_S, Clock


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of small artifacts."""
    return artifacts.repository(
        tmp_path_factory.mktemp("repository"),
        adder=artifacts.running_sum,
        one_step=foreign.one_step,
        reciprocal=foreign.reciprocal,
        audio=foreign.audio,
        frozen=foreign.frozen,
        counters=foreign.counters,
        delay=foreign.delay,
        looks_ahead=foreign.looks_ahead,
        equal=lambda path: artifacts.running_sum(path, ragged=False),
        poison=artifacts.poison,
        language=artifacts.language,
        forecast=artifacts.forecast,
    )


@pytest.fixture(scope="session")
def loaded(repository: Path) -> list[LoadedModel]:
    """The artifacts of ``repository`` in engines that were probed."""
    return load_repository(repository, load_settings(provider="cpu", tune=False))[0]


@pytest.fixture(scope="session")
def models(loaded: list[LoadedModel]) -> dict[str, LoadedModel]:
    """The same, by name."""
    return {model.name: model for model in loaded}


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each kind of store."""
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "sessions.db", fsync=False)
    yield made
    made.close()


@pytest.fixture
async def serve(loaded: list[LoadedModel], store: Store, clock: Clock) -> AsyncIterator[Serve]:
    """Starts a brain with the settings that it is given; all share one store and one clock, as replicas do."""
    async with AsyncExitStack() as stack:

        def start(models: list[LoadedModel] = loaded, **settings: object) -> Brain:
            brain = Brain(models, store, clock, **settings)
            brain.sessions.start()
            stack.push_async_callback(_closed, brain)
            return brain

        yield start


async def _closed(brain: Brain) -> None:
    for engine in brain.engines.values():
        engine.gate.open()
    brain.store.gate.open()
    await brain.sessions.close()


@pytest.fixture
async def brain(serve: Serve) -> Brain:
    """A brain with the default settings."""
    return serve()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A bench; its batcher is closed at the end."""
    made = Bench()
    made.batcher.start()
    yield made
    made.gate.open()
    await made.batcher.close(PATIENCE_S)
