"""Three replicas over one Redis: any of them serves any step, and together they lose and double none."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support import artifacts
from tests.support.haproxy import haproxy
from tests.support.redis import RedisServer
from tests.support.server import Server, create

SESSIONS, STEPS, CLIENTS = 200, 5, 8
CONFLICT = "urn:lstm-serve:problem:position-conflict"
Body = dict[str, object]


class Place:
    """Models and a Redis, for as many servers as one wants."""

    def __init__(self, folders: pytest.TempPathFactory, redis: RedisServer) -> None:
        self._models = artifacts.repository(folders.mktemp("models"), adder=artifacts.running_sum)
        self._folders, self._redis = folders, redis

    @contextmanager
    def replicas(self, **settings: object) -> Iterator[list[Server]]:
        """Three servers over the same sessions, none of them preferred."""
        chosen = {"store": self._redis.url, "tune": False} | settings
        with ExitStack() as stack:
            servers = [Server(self._folders.mktemp("replica"), self._models, **chosen) for _ in range(3)]
            yield [stack.enter_context(server) for server in servers]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A Redis with an append-only file."""
    with RedisServer(tmp_path_factory.mktemp("redis"), appendonly="yes") as redis:
        yield Place(tmp_path_factory, redis)


@pytest.fixture(scope="module")
def replicas(place: Place) -> Iterator[list[Server]]:
    """Three servers that end at once when they are told to."""
    with place.replicas() as servers:
        yield servers


@contextmanager
def connected(replicas: Sequence[Server]) -> Iterator[list[httpx.Client]]:
    """A client of each."""
    with ExitStack() as stack:
        yield [stack.enter_context(replica.client()) for replica in replicas]


def step(value: int, position: int | None = None) -> Body:
    """One step, for a position or for wherever the session stands."""
    return {"inputs": [[value]]} | ({} if position is None else {"position": position})


def total(answer: httpx.Response) -> float:
    """The sum that a step was answered."""
    assert answer.status_code == 200, answer.text
    return float(answer.json()["outputs"]["y"][-1])


def test_duplicates_and_late_ones_move_nothing(replicas: list[Server]) -> None:
    """Every step goes to two replicas at once, and an earlier one again: one answer, to the byte, or a conflict."""
    chance = random.Random(5)
    with connected(replicas) as clients, ThreadPoolExecutor(CLIENTS) as pool:
        sessions = [create(clients[n % 3], "adder") for n in range(SESSIONS)]
        sums, told = [0] * SESSIONS, [b""] * SESSIONS
        for position in range(STEPS):
            values = [chance.randrange(1, 1000) for _ in sessions]
            sent = []
            for session, value in zip(sessions, values, strict=True):
                once, twice = chance.sample(clients, 2)
                places = (once, twice) if chance.random() < 0.9 else (once, once)
                sent.append([pool.submit(c.post, f"{session}/steps", json=step(value, position)) for c in places])
            late = [  # one that was answered long ago
                pool.submit(chance.choice(clients).post, f"{session}/steps", json=step(1, max(0, position - 2)))
                for session in chance.sample(sessions, 20)
            ]
            for n, answers in enumerate(sent):
                sums[n] += values[n]
                one, other = (future.result() for future in answers)
                assert total(one) == total(other) == sums[n]
                assert one.content == other.content
                told[n] = one.content
            if position:
                assert {future.result().json()["type"] for future in late} == {CONFLICT}
        for n, session in enumerate(sessions):
            again = clients[n % 3].post(f"{session}/steps", json=step(values[n], STEPS - 1))
            assert (again.content, again.headers["idempotent-replayed"]) == (told[n], "true")
            assert clients[(n + 1) % 3].get(session).json()["position"] == STEPS


def test_steps_without_a_position_apply_one_after_the_other(replicas: list[Server]) -> None:
    """Two at the same moment, at two replicas: both are applied, and each is told what stood before it."""
    with connected(replicas) as clients, ThreadPoolExecutor(CLIENTS) as pool:
        sessions = [create(clients[0], "adder") for _ in range(50)]
        for n, session in enumerate(sessions):
            pair = [pool.submit(clients[(n + k) % 3].post, f"{session}/steps", json=step(10 + k)) for k in range(2)]
            first, second = sorted(total(future.result()) for future in pair)
            assert (first in (10, 11), second) == (True, 21)
            assert clients[2].get(session).json()["position"] == 2


class Load(threading.Thread):
    """Steps of one session, each tried once more, at the next of the addresses, where the first did not answer it."""

    def __init__(self, urls: Sequence[str], stop: threading.Event) -> None:
        super().__init__()
        self._clients = [httpx.Client(base_url=url, timeout=30.0) for url in urls]
        self.session = create(self._clients[0], "adder")
        self._stopped = stop
        self.failed: list[str] = []
        self.steps = self.retried = 0

    def run(self) -> None:
        """Until it is stopped."""
        while not self._stopped.is_set() and not self.failed:
            self._step(step(1, self.steps), self.steps + 1.0)
        for client in self._clients:
            client.close()

    def _step(self, body: Body, due: float) -> None:
        for n in range(2):
            try:
                answer = self._clients[(self.steps + n) % len(self._clients)].post(f"{self.session}/steps", json=body)
            except httpx.TransportError as error:
                told = repr(error)
            else:
                if answer.status_code == 200 and total(answer) == due:
                    self.steps += 1
                    return
                told = answer.text
            self.retried += 1
        self.failed.append(told)


def roll(replicas: Sequence[Server], urls: Sequence[str]) -> int:
    """End and start one replica after the other, under load; how many steps were sent twice."""
    stop = threading.Event()
    loads = [Load(urls, stop) for _ in range(CLIENTS)]
    for load in loads:
        load.start()
    try:
        for replica in replicas:
            before = sum(load.steps for load in loads)
            assert replica.terminate() == 0
            replica.start()
            while sum(load.steps for load in loads) < before + 50 and not any(load.failed for load in loads):
                time.sleep(0.01)
    finally:
        stop.set()
        for load in loads:
            load.join()
    assert [load.failed for load in loads] == [[]] * CLIENTS
    with connected(replicas) as clients:
        positions = [clients[n % 3].get(load.session).json()["position"] for n, load in enumerate(loads)]
    assert positions == [load.steps for load in loads]
    return sum(load.retried for load in loads)


def test_a_rolling_restart_under_load_fails_nothing(replicas: list[Server]) -> None:
    """One replica after the other ends in order and starts again: no request fails that is tried once more."""
    assert roll(replicas, [replica.url for replica in replicas]) > 0


def test_behind_the_balancer_nothing_is_sent_twice(place: Place, tmp_path: Path) -> None:
    """Replicas that are lame ducks first, and a balancer that asks often: clients do not notice the restarts."""
    with place.replicas(lame_duck_s=1) as ducks:
        ports = [int(duck.url.rpartition(":")[2]) for duck in ducks]
        with haproxy(tmp_path, ports, check="200ms") as url:
            assert roll(ducks, [url]) == 0


def test_a_replica_that_is_killed_takes_nothing_with_it(replicas: list[Server]) -> None:
    """Its sessions go on at the others at once."""
    with connected(replicas) as clients:
        sessions = [create(clients[0], "adder") for _ in range(20)]
        for session in sessions:
            assert total(clients[0].post(f"{session}/steps", json=step(7, 0))) == 7
        replicas[0].kill()
        for n, session in enumerate(sessions):
            assert total(clients[1 + n % 2].post(f"{session}/steps", json=step(1, 1))) == 8
    replicas[0].start()
