"""The composition root: which store the settings name, and what stops the start."""

from pathlib import Path

import pytest

from service.app import build
from service.errors import ArtifactError, StoreUnavailable
from service.settings import load_settings
from service.store_url import parse
from service.stores.memory import MemoryStore
from service.stores.opening import Durability, open_store
from service.stores.sqlite import SqliteStore


@pytest.mark.parametrize(("durability", "level"), [("commit", 1), ("fsync", 2)])
def test_sessions_are_kept_in_sqlite_as_durable_as_told(tmp_path: Path, durability: Durability, level: int) -> None:
    """The path is the setting's, and ``fsync`` reaches the disk with every commit."""
    store = open_store(parse(f"sqlite:{tmp_path}/a/b.db"), durability)
    assert isinstance(store, SqliteStore)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (level,)
    assert (tmp_path / "a" / "b.db").exists()
    store.close()


def test_who_opts_out_keeps_nothing(tmp_path: Path) -> None:
    """With ``durability=memory`` no file is made."""
    store = open_store(parse(f"sqlite:{tmp_path}/a.db"), "memory")
    assert isinstance(store, MemoryStore)
    assert list(tmp_path.iterdir()) == []


def test_a_start_without_models_is_refused_before_a_store_is_opened(tmp_path: Path) -> None:
    """Nothing is left behind by a start that cannot succeed."""
    with pytest.raises(ArtifactError):
        build(load_settings(model_repository=tmp_path / "models", store=f"sqlite:{tmp_path}/a.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_start_without_a_store_is_refused(tmp_path: Path, repository: Path) -> None:
    """A store that cannot be opened stops the start by name."""
    with pytest.raises(StoreUnavailable):
        build(load_settings(model_repository=repository, provider="cpu", store=f"sqlite:{tmp_path}"))
