"""Faults of one machine: processes that die or stop, SQLite's file, clocks, limits, clients."""

import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx

from tests.faults.clients import Client, go_on
from tests.faults.running import Missing, Run
from tests.support.server import START_LIMIT_S, Server, create

CLIENTS = 12
_TMPFS_MB = 8


def kill(run: Run) -> None:
    """SIGKILL of the server, at random moments."""
    with run.server() as server, run.load(server):
        for _ in range(run.times(2, 80)):
            time.sleep(run.chance.uniform(0.02, 0.3))
            server.kill()
            server.start()
            run.done()


def kill_processes(run: Run) -> None:
    """SIGKILL of the supervisor, the engine or a front end."""
    with run.server(http_workers=2) as server, run.load(server) as crowd:
        for n in range(run.times(3, 60)):
            time.sleep(run.chance.uniform(0.05, 0.4))
            kind = ("engine", "front", "supervisor")[n % 3]
            if kind == "supervisor":
                server.kill()
                _gone(server)
                server.start()
            elif pids := server.children(kind):
                with suppress(ProcessLookupError):
                    os.kill(run.chance.choice(pids), signal.SIGKILL)
            run.done()
            go_on(crowd, 10)


def _gone(server: Server) -> None:
    """Wait until nobody listens on its port any more."""
    deadline = time.monotonic() + START_LIMIT_S
    port = int(server.url.rsplit(":", 1)[1])
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return
        time.sleep(0.02)


def terminate(run: Run) -> None:
    """SIGTERM under load, and a new start."""
    with run.server() as server, run.load(server) as crowd:
        for _ in range(run.times(1, 10)):
            time.sleep(0.2)
            if status := server.terminate():
                run.failed(f"SIGTERM ended with status {status}")
            server.start()
            run.done()
            go_on(crowd)


def stop_and_continue(run: Run) -> None:
    """SIGSTOP of the server for 30 s (2 s), then SIGCONT."""
    with run.server() as server, run.load(server) as crowd:
        go_on(crowd)
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(run.times(2, 30))
        os.kill(server.pid, signal.SIGCONT)
        run.done()
        go_on(crowd)


def stop_engine(run: Run) -> None:
    """SIGSTOP of the engine behind a front end for 30 s (2 s), then SIGCONT."""
    with run.server(http_workers=1) as server, run.load(server) as crowd:
        go_on(crowd)
        (engine,) = server.children("engine")
        os.kill(engine, signal.SIGSTOP)
        time.sleep(run.times(2, 30))
        os.kill(engine, signal.SIGCONT)
        run.done()
        go_on(crowd)


def locked(run: Run) -> None:
    """The database is locked by another process, for longer than the server waits."""
    with run.server() as server, run.load(server) as crowd:
        for _ in range(run.times(1, 3)):
            go_on(crowd)
            with closing(sqlite3.connect(run.database, isolation_level=None, timeout=30)) as other:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(3)
                other.execute("ROLLBACK")
            run.done()
            go_on(crowd)


def disk_full(run: Run) -> None:
    """The disk (a tmpfs) fills up under the database, and is made free again."""
    with _tmpfs(run.folder / "disk") as disk, run.server(store=f"sqlite:{disk}/sessions.db") as server:
        with run.load(server) as crowd:
            go_on(crowd)
            filling = disk / "filling"
            with suppress(OSError), filling.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            time.sleep(1)
            with server.client() as client:
                if client.get("/health/ready").status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    run.failed("the server is ready on a full disk")
            filling.unlink()
            run.done()
            go_on(crowd)


@contextmanager
def _tmpfs(folder: Path) -> Iterator[Path]:
    if os.geteuid():
        raise Missing("root, to mount a tmpfs")
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_MB}m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        raise Missing("a system that mounts a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def read_only(run: Run) -> None:
    """The file system of the database becomes read-only, and writable again."""
    with _tmpfs(run.folder / "disk") as disk, run.server(store=f"sqlite:{disk}/sessions.db") as server:
        with run.load(server) as crowd:
            go_on(crowd)
            # A file that is open for writing keeps a mount from becoming read-only: a limit of no bytes does the same.
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            time.sleep(1)
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            run.done()
            go_on(crowd)


def flipped_bytes(run: Run) -> None:
    """A byte of a stored state is flipped: that session is named and refused, the others go on."""
    with run.server() as server:
        with server.client() as client:
            victims = [create(client, "sum") for _ in range(run.times(3, 20))]
            for victim in victims:
                client.post(f"{victim}/steps", json={"inputs": [5]})
        server.kill()
        with closing(sqlite3.connect(run.database)) as db:
            for victim in victims:
                id = victim.rsplit("/", 1)[1]
                (state,) = db.execute("SELECT state FROM sessions WHERE id=?", (id,)).fetchone()
                at = run.chance.randrange(len(state))
                flipped = state[:at] + bytes([state[at] ^ 1 << run.chance.randrange(8)]) + state[at + 1 :]
                db.execute("UPDATE sessions SET state=? WHERE id=?", (flipped, id))
            db.commit()
        server.start()
        with run.load(server) as crowd, server.client() as client:
            for victim in victims:
                run.done()
                answer = client.post(f"{victim}/steps", json={"inputs": [1], "position": 1})
                if answer.json().get("type") != "urn:lstm-serve:problem:undecodable-state":
                    run.failed(f"a damaged session was answered {answer.text}")
                if client.delete(victim).status_code != httpx.codes.NO_CONTENT:
                    run.failed("a damaged session cannot be deleted")
            go_on(crowd)


def truncated(run: Run) -> None:
    """The database is cut off in the middle: the server says so, and serves nothing made up."""
    with run.server() as server:
        with server.client() as client:
            sessions = [create(client, "sum") for _ in range(50)]
            for session in sessions:
                client.post(f"{session}/steps", json={"inputs": [5]})
        server.terminate()
        with run.database.open("r+b") as file:
            file.truncate(run.database.stat().st_size // 2)
        run.done()
        with suppress(RuntimeError):  # it may refuse to start
            server.start()
            with server.client() as client:
                for session in sessions:
                    answer = client.post(f"{session}/steps", json={"inputs": [1], "position": 1})
                    if answer.status_code == httpx.codes.OK and answer.json()["outputs"]["y"] != [6.0]:
                        run.failed(f"a session of a truncated file was answered {answer.text}")


def clock_steps(run: Run) -> None:
    """The wall clock is set two hours forwards, and three backwards."""
    program = shutil.which("faketime")
    if program is None:
        raise Missing("faketime")
    (libraries,) = {path.parent for path in Path("/usr/lib").rglob("libfaketimeMT.so.1")} or {None}
    if libraries is None:
        raise Missing("libfaketimeMT")
    setting = run.folder / "time"
    setting.write_text("+0")
    faked = {
        "LD_PRELOAD": str(libraries / "libfaketimeMT.so.1"),
        "FAKETIME_TIMESTAMP_FILE": str(setting),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with run.environment(faked), run.server() as server, run.load(server) as crowd:
        for offset in ("+2h", "-1h", "+0"):
            go_on(crowd)
            setting.write_text(offset)
            run.done()
            go_on(crowd)


def memory_limit(run: Run) -> None:
    """The server may not have more memory; what it cannot do is refused, and it goes on."""
    with run.server() as server, run.load(server) as crowd:
        go_on(crowd)
        held = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(server.pid, resource.RLIMIT_AS, (held + 2**20, resource.RLIM_INFINITY))
        with server.client() as client:
            for _ in range(run.times(5, 50)):
                with suppress(httpx.TransportError):
                    client.post("/v1/models/sum/predict", json={"inputs": [[1.0] * 2000] * 8})
        resource.prlimit(server.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        run.done()
        if server.exited:
            server.start()
        go_on(crowd)


def open_files(run: Run) -> None:
    """Too many open files: no connection can be accepted for a while; those that are there go on."""
    with run.server() as server, run.load(server) as crowd, ExitStack() as held:
        go_on(crowd)
        count = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (count + 5, count + 5_000))
        port = int(server.url.rsplit(":", 1)[1])
        for _ in range(50):
            held.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        time.sleep(1)
        run.done()
        go_on(crowd)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (count + 5_000, count + 5_000))
        held.close()
        go_on(crowd)


def connections(run: Run) -> None:
    """10,000 connections (1,000) that ask for nothing, beside those that do."""
    many = run.times(1_000, 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < many + 1_000:
        raise Missing(f"{many + 1_000} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with run.server() as server, run.load(server) as crowd, ExitStack() as held:
            port = int(server.url.rsplit(":", 1)[1])
            for _ in range(many):
                held.enter_context(socket.create_connection(("127.0.0.1", port), 30))
                run.done()
            go_on(crowd)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def clients_alone(run: Run) -> None:
    """No fault but the clients': gone in mid-request, everything sent twice, many at one session."""
    with run.server() as server:
        with run.load(server) as crowd:
            go_on(crowd, run.times(300, 5_000))
            run.done()
        stop = threading.Event()
        shared = [Client(lambda: [server.url], "blind", 77 + n, stop) for n in range(4)]
        shared[0].create()
        for client in shared[1:]:
            client.history = shared[0].history
        for client in shared:
            client.start()
        time.sleep(run.times(1, 5))
        stop.set()
        for client in shared:
            client.join()
        shared[0].audit()
        run.add(shared[0].history)


FAULTS = (
    kill, kill_processes, terminate, stop_and_continue, stop_engine, locked, disk_full, read_only, flipped_bytes,
    truncated, clock_steps, memory_limit, open_files, connections, clients_alone,
)  # fmt: skip
