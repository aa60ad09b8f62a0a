"""Every kind of store, empty and open."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.stores.base import Store
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore

# Each store there is, made in a folder of its own. A new store is added here, and nowhere else in these tests.
STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SqliteStore(folder / "sessions.db", fsync=False),
    "sqlite-fsync": lambda folder: SqliteStore(folder / "sessions.db", fsync=True),
}


@pytest.fixture(params=list(STORES.values()), ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each store, empty."""
    made: Store = request.param(tmp_path)
    yield made
    made.close()
