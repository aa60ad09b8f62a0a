"""What a fault has to work with: servers, load, a seeded choice, and the row that it fills."""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.clients import Client, loaded
from tests.faults.history import History
from tests.faults.report import Row
from tests.support.server import Server

CLIENTS = 12


class Missing(Exception):
    """This machine has not what the fault needs."""


class Run:
    """One fault on this machine, in a folder of its own."""

    def __init__(self, row: Row, folder: Path, models: Path, seed: int, *, short: bool) -> None:
        self.row, self.folder, self.models = row, folder, models
        self.chance = random.Random(f"{seed} {row.fault}")
        self._short = short
        self.database = folder / "sessions.db"

    def times(self, short: int, full: int) -> int:
        """How much of something."""
        return short if self._short else full

    def server(self, **settings: object) -> Server:
        """A server, to be started."""
        return Server(self.folder, self.models, **({"tune": False} | settings))

    @contextmanager
    def load(self, *servers: Server) -> Iterator[list[Client]]:
        """Clients of these servers; what they saw is in the report."""
        with self.loading(lambda: [server.url for server in servers]) as crowd:
            yield crowd

    @contextmanager
    def loading(self, targets: Callable[[], list[str]]) -> Iterator[list[Client]]:
        """Clients of what the targets are at each moment."""
        with loaded(targets, CLIENTS, self.chance.randrange(10**6)) as crowd:
            yield crowd
        self.row.histories += [client.history for client in crowd]

    @contextmanager
    def environment(self, more: Mapping[str, str]) -> Iterator[None]:
        """Processes that are started meanwhile have these variables, too."""
        os.environ.update(more)
        try:
            yield
        finally:
            for name in more:
                del os.environ[name]

    def add(self, history: History) -> None:
        """Judge another session."""
        self.row.histories.append(history)

    def done(self) -> None:
        """The fault was done once more."""
        self.row.times += 1

    def failed(self, what: str) -> None:
        """Something else is wrong."""
        self.row.failed = what
