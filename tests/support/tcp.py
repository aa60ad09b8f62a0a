"""A TCP proxy that a test holds in its hand: it counts what is asked, and cuts connections where it is told to."""

import contextlib
import socket
import threading
from typing import Literal, Self

Cut = Literal["before", "after", None]  # the request reaches the server, or it does not; the answer never comes


class Proxy:
    """Stands before a server of this machine that speaks when it is spoken to. Used as a context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cut: Cut = None
        self.round_trips = 0
        self.sent = self.received = 0  # bytes to the server, and back

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            asked = threading.Event()  # since the last answer began
            back = threading.Thread(target=self._answer, args=(server, client, asked), daemon=True)
            back.start()
            self._ask(client, server, asked)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()

    def _ask(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                if self.cut == "before":
                    break
                if not asked.is_set():
                    asked.set()
                    self.round_trips += 1
                self.sent += len(data)
                server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket, asked: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if self.cut == "after":
                    break
                asked.clear()
                self.received += len(data)
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
