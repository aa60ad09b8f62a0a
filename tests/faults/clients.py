"""Clients that step sessions while something breaks, and write down what they were told."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

import httpx

from tests.faults.history import History, Operation

Manner = Literal["steady", "twice", "blind", "rude"]
MANNERS: tuple[Manner, ...] = ("steady", "twice", "blind", "rude")
PATIENCE_S = 90.0  # until a step is answered, whatever breaks
MAYBE = "urn:lstm-serve:problem:outcome-unknown"
CONFLICTS = ("urn:lstm-serve:problem:position-conflict", "urn:lstm-serve:problem:already-applied")
_PAUSE_S = 0.02
_OK, _CONFLICT = 200, 409


class Client(threading.Thread):
    """One session, stepped until it is told to stop; ``targets`` are tried in turn."""

    def __init__(self, targets: Callable[[], Sequence[str]], manner: Manner, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._targets, self._manner, self._stopped = targets, manner, stop
        self._chance = random.Random(seed)
        self._turn = seed
        self._http = httpx.Client(timeout=60.0)
        self.history = History("")
        self.total = self.position = 0

    def create(self) -> None:
        """Begin the session; tried until it is there."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(httpx.TransportError):
                answer = self._http.post(f"{self._where()}/v1/sessions", json={"model": "sum"})
                if answer.status_code == httpx.codes.CREATED:
                    self.history.session = answer.headers["location"]
                    return
            assert time.monotonic() < deadline, "no session can be created"
            time.sleep(_PAUSE_S)

    def run(self) -> None:
        """Step after step."""
        while not self._stopped.is_set():
            if self._manner == "blind":
                self._blindly()
            else:
                self._surely(self._chance.randrange(1, 1000))

    def audit(self) -> None:
        """Ask where the session stands: its position, and by one more step there, which adds nothing, its sum."""
        read = Operation(None, None, time.monotonic())
        deadline = time.monotonic() + PATIENCE_S
        while read.told is None and time.monotonic() < deadline and not self.history.wrong:
            with suppress(httpx.TransportError):
                url = f"{self._where()}{self.history.session}"
                known = self._http.get(url)
                if known.status_code == _OK:
                    position = known.json()["position"]
                    answer = self._http.post(f"{url}/steps", json={"inputs": [0], "position": position})
                    if answer.status_code == _OK:
                        read.told = position, int(answer.json()["outputs"]["y"][-1])
                elif known.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    self.history.wrong.append(known.text)
            time.sleep(_PAUSE_S)
        if read.told is None:
            self.history.wrong.append("the session does not answer any more")
        read.ended = time.monotonic()
        self.history.operations.append(read)
        self._http.close()

    def _surely(self, value: int) -> None:
        """A step that names its position, sent until it is answered."""
        operation = Operation(value, self.position, time.monotonic())
        self.history.operations.append(operation)
        deadline, maybe = time.monotonic() + PATIENCE_S, False
        while time.monotonic() < deadline:
            if self._manner == "rude" and self._chance.random() < 0.3:
                self._leave(value, self.position)
                maybe = True
            answer = self._send({"inputs": [value], "position": self.position})
            if answer is not None and answer.status_code == _OK:
                self._acknowledged(operation, answer)
                if self._manner == "twice":
                    self._again(value, operation.position, answer.content)
                return
            if answer is None or answer.json().get("type") == MAYBE:
                maybe = True
                self.history.unknown += 1
            else:
                self.history.refused += 1
                if answer.status_code == _CONFLICT or answer.status_code in (404, 410, 422, 500):
                    self.history.wrong.append(answer.text)
                    break
            if self._stopped.is_set() and time.monotonic() > deadline - PATIENCE_S / 2:
                break
            time.sleep(_PAUSE_S)
        operation.refused = not maybe
        self._stopped.set()

    def _again(self, value: int, position: int | None, content: bytes) -> None:
        """The same request once more, as from a client that never saw the answer."""
        answer = self._send({"inputs": [value], "position": position})
        if answer is None:
            self.history.unknown += 1
        elif answer.status_code == _OK:
            self.history.replayed += answer.headers.get("idempotent-replayed") == "true"
            if answer.content != content:
                self.history.wrong.append(f"a repeat was answered {answer.text}, the first {content.decode()}")
        elif answer.json().get("type") in CONFLICTS:
            self.history.wrong.append(answer.text)
        else:
            self.history.refused += 1

    def _blindly(self) -> None:
        """A step for wherever the session stands, sent once."""
        value = self._chance.randrange(1, 1000)
        operation = Operation(value, None, time.monotonic())
        self.history.operations.append(operation)
        answer = self._send({"inputs": [value]})
        if answer is not None and answer.status_code == _OK:
            self._acknowledged(operation, answer)
        elif answer is None or answer.json().get("type") == MAYBE:
            self.history.unknown += 1
            time.sleep(_PAUSE_S)
        else:
            self.history.refused += 1
            operation.refused = True
            time.sleep(_PAUSE_S)

    def _acknowledged(self, operation: Operation, answer: httpx.Response) -> None:
        told = answer.json()
        operation.ended = time.monotonic()
        operation.told = told["position"], int(told["outputs"]["y"][-1])
        self.position, self.total = operation.told
        self.history.replayed += answer.headers.get("idempotent-replayed") == "true"

    def _send(self, body: dict[str, object]) -> httpx.Response | None:
        """The answer; None where there was none."""
        self.history.sent += 1
        try:
            answer = self._http.post(f"{self._where()}{self.history.session}/steps", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout):  # nothing of it was sent
            self._turn += 1
            return httpx.Response(httpx.codes.SERVICE_UNAVAILABLE, json={})
        except httpx.TransportError:
            self._turn += 1
            return None
        if answer.status_code >= 500:
            self._turn += 1
        return answer

    def _leave(self, value: int, position: int) -> None:
        """Send a step, or a part of it, and hang up at once."""
        url = urlsplit(self._where())
        body = b'{"inputs":[%d],"position":%d}' % (value, position)
        head = f"POST {self.history.session}/steps HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        request = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
        self.history.sent += 1
        with suppress(OSError), socket.create_connection((url.hostname, url.port), 5) as connection:
            connection.sendall(request[: self._chance.choice([20, len(request) - 3, len(request)])])

    def _where(self) -> str:
        targets = self._targets()
        return targets[self._turn % len(targets)]


@contextmanager
def loaded(targets: Callable[[], Sequence[str]], clients: int, seed: int) -> Iterator[list[Client]]:
    """Clients of every manner, which step sessions meanwhile; at the end each session is asked where it stands."""
    stops = [threading.Event() for _ in range(clients)]
    crowd = [Client(targets, MANNERS[n % len(MANNERS)], seed * 1000 + n, stops[n]) for n in range(clients)]
    for client in crowd:
        client.create()
    for client in crowd:
        client.start()
    try:
        yield crowd
    finally:
        for stop in stops:
            stop.set()
        for client in crowd:
            client.join(2 * PATIENCE_S)
    for client in crowd:
        client.audit()


def steps(crowd: Sequence[Client]) -> int:
    """Acknowledged so far."""
    return sum(client.history.acknowledged for client in crowd)


def go_on(crowd: Sequence[Client], more: int = 40) -> None:
    """Wait until so many more steps were acknowledged: the service serves again."""
    before, deadline = steps(crowd), time.monotonic() + PATIENCE_S
    while steps(crowd) < before + more:
        assert time.monotonic() < deadline, "the service does not serve any more"
        time.sleep(_PAUSE_S)
