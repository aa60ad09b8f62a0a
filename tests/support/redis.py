"""A real Redis server for tests: started, killed, paused and started again on the same port and folder."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, TypeVar

import pytest
import redis

from service.errors import StoreUnavailable

START_LIMIT_S = 20.0
SLOTS = 16384
T = TypeVar("T")


def needed(program: str = "redis-server") -> str:
    """The path of a program; the test is skipped, visibly, where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """``redis-server`` in a folder, as a context manager. ``options``: of redis.conf, such as appendonly="yes"."""

    def __init__(self, folder: Path, password: str | None = None, **options: object) -> None:
        self._folder = folder
        self._password = password
        self.port = free_port()
        self._options = {"port": self.port, "bind": "127.0.0.1", "dir": folder, "save": ""} | options
        written = [[f"--{name.replace('_', '-')}", *str(value).split(" ")] for name, value in self._options.items()]
        self._command = [needed(), *itertools.chain(*written)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bus_port(self) -> object:
        """Where the nodes of a cluster speak to each other."""
        return self._options["cluster-port"]

    @property
    def url(self) -> str:
        """Where a store finds it."""
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A connection for looking inside."""
        return redis.Redis(port=self.port, password=self._password)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "redis.log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def follows(self) -> None:
        """Wait until this replica has what its master has."""
        with self.client() as client:
            _until(lambda: client.info("replication")["master_link_status"] == "up", "the replica does not follow")

    def signal(self, number: int) -> None:
        """Send a signal: SIGSTOP pauses it, SIGCONT lets it go on."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()


def eventually(call: Callable[[], T]) -> T:
    """What a call comes to as soon as the store is there (again)."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Sentinel(RedisServer):
    """A sentinel that alone decides, soon, when a master is down."""

    def __init__(self, folder: Path, service: str, master: RedisServer) -> None:
        super().__init__(folder)
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {service} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {service} 300\nsentinel failover-timeout {service} 2000\n"
        )
        self._command = [needed("redis-sentinel"), str(config)]

    def knows_a_replica(self, service: str) -> None:
        """Wait until it has found whom to promote."""
        with self.client() as client:
            _until(lambda: bool(client.sentinel_slaves(service)), "the sentinel finds no replica")


@contextmanager
def cluster(folder: Path, masters: int = 3) -> Iterator[list[RedisServer]]:
    """Some servers that share the slots among them, up and agreed."""
    with ExitStack() as stack:
        servers = []
        for n in range(masters):
            (folder / str(n)).mkdir()
            options = {"cluster-enabled": "yes", "cluster-port": free_port(), "cluster-require-full-coverage": "no"}
            servers.append(stack.enter_context(RedisServer(folder / str(n), **options)))
        share = -(-SLOTS // masters)
        for n, server in enumerate(servers):
            with server.client() as client:
                last = min(SLOTS, (n + 1) * share) - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", n * share, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, servers[0].bus_port)
        _until(lambda: all(_agrees(server, masters) for server in servers), "the cluster does not come together")
        yield servers


def _agrees(server: RedisServer, masters: int) -> bool:
    with server.client() as client:
        lines = client.execute_command("CLUSTER", "INFO").decode().split()
    info = dict(line.split(":") for line in lines)
    told = [info[name] for name in ("cluster_state", "cluster_known_nodes", "cluster_slots_ok")]
    return told == ["ok", str(masters), str(SLOTS)]


def _until(there: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not there():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
