"""`lstm-serve bench` against a running server, and as a user meets it: figures, sentences, exit status."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

import lstm_serve
from bench.options import Address, address
from bench.processor import cpu_seconds, server_processes
from tests.support.server import Server

LEAST = ("--seconds", "0.3", "--warm-up", "0.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Server]:
    """A server of its own: there are no sessions but those of the load."""
    with Server(tmp_path_factory.mktemp("server"), repository, max_body_bytes=100_000, max_steps=2000) as running:
        yield running


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `lstm-serve bench`."""
    monkeypatch.setattr(sys, "argv", ["lstm-serve", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        lstm_serve.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("language", ("--sessions", "1,5", "--processes", "2")),
        ("language", ("--sessions", "4", "--rate", "40", "--steps", "7")),
        ("forecast", ("--sessions", "4", "--steps", "3")),
        ("sum", ("--sessions", "3,1", "--rate", "30", "--processes", "2")),
        ("language", ("--sessions", "3", "--transport", "websocket", "--in-flight", "8", "--binary")),
        ("sum", ("--sessions", "2", "--transport", "websocket", "--in-flight", "3", "--steps", "4", "--rate", "90")),
    ],
)
def test_a_measurement(
    monkeypatch: pytest.MonkeyPatch, client: httpx.Client, server: Server, tmp_path: Path, model: str,
    more: tuple[str, ...],
) -> None:  # fmt: skip
    """Answers are counted and right, the server's CPU time is found, and no session stays behind."""
    out, plot = tmp_path / "report.json", tmp_path / "plot.png"
    assert run(monkeypatch, server.url, "--model", model, *LEAST, *more, "--out", str(out), "--plot", str(plot)) == 0
    report = json.loads(out.read_text())
    sessions = [int(word) for word in more[more.index("--sessions") + 1].split(",")]
    assert [stage["sessions"] for stage in report["stages"]] == sessions
    for stage in report["stages"]:
        assert stage["requests"] > 0
        assert stage["problems"] == {}
        assert stage["latency_ms"]["p50"] <= stage["latency_ms"]["p99.9"] <= stage["latency_ms"]["max"]
        assert stage["server_cpu_us_per_step"] is not None
        assert stage["generator"]["cpu_us_per_request"] > 0
    assert report["model"]["name"] == model
    assert report["problems_at_the_end"] == {}
    assert report["latency"].startswith("closed loop" if "--rate" not in more else more[more.index("--rate") + 1])
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert client.get("/v1/sessions", params={"model": model}).json()["sessions"] == []


def test_the_search_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    """A latency that nobody can keep: no session, after one was tried twice."""
    assert run(monkeypatch, server.url, "--model", "sum", *LEAST, "--slo", "p50=1us") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("no session on this machine within a p50 of 0.001 ms")
    assert len(told) == 5


def test_refused_answers_are_told_by_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    """More steps than the server takes: counted, said, exit status 1."""
    assert run(monkeypatch, server.url, "--model", "sum", *LEAST, "--sessions", "2", "--steps", "2001") == 1
    assert "x too-large" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("http://127.0.0.1:1",), "no lstm-serve answers at http://127.0.0.1:1"),
        (("URL", "--model", "nope"), "the server has no model 'nope' (it has "),
        (("URL", "--slo", "fast"), "--slo: expected something like p99=20ms"),
        (("URL", "--sessions", "some"), "--sessions: expected numbers"),
        (("URL", "--transport", "pigeon"), "--transport: expected http or websocket"),
        (("URL", "--in-flight", "2"), "--in-flight: expected --transport websocket with it"),
        (("URL", "--binary"), "--binary: expected --transport websocket with it"),
        (("nowhere",), "expected http://HOST:PORT"),
        (("URL", "--out", "/nowhere/at/all.json"), "its folder does not exist"),
    ],
)
def test_mistakes_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server, arguments: tuple[str, ...],
    sentence: str,
) -> None:  # fmt: skip
    """Exit status 2, nothing measured."""
    assert run(monkeypatch, *(server.url if word == "URL" else word for word in arguments)) == 2
    told = capsys.readouterr()
    assert told.err.startswith("lstm-serve: ")
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_another_server_is_told_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One that answers JSON to everything, but not ours."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "fine"}')

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Silent."""

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            assert run(monkeypatch, f"http://127.0.0.1:{other.server_port}") == 2
        finally:
            other.shutdown()
    assert capsys.readouterr().err.endswith(" is no lstm-serve\n")


def test_a_plot_needs_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    """It is said before anything is measured."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(monkeypatch, server.url, "--plot", str(tmp_path / "plot.png")) == 2
    assert "needs matplotlib, which the extra 'train' brings" in capsys.readouterr().err


def test_an_interrupt_ends_in_order(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group: the report tells what was measured, and the sessions are gone."""
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "lstm_serve", "bench", server.url, "--model", "language", "--out", str(out)]
    command += ["--sessions", "3", "--seconds", "600", "--warm-up", "0", "--processes", "2"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    limit = threading.Timer(60, running.kill)
    limit.start()
    while not _stepped(client):
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)
    told = running.communicate()
    limit.cancel()
    assert (running.returncode, told[1]) == (130, b"")
    report = json.loads(out.read_text())
    assert report["interrupted"]
    assert report["stages"][0]["requests"] > 0
    assert report["problems_at_the_end"] == {}
    assert client.get("/v1/sessions").json()["sessions"] == []


def test_a_killed_measurement_leaves_no_sessions(client: httpx.Client, server: Server) -> None:
    """Its processes notice that their parent is gone, and end what they have made."""
    command = [sys.executable, "-m", "lstm_serve", "bench", server.url, "--model", "language", "--seconds", "600"]
    running = subprocess.Popen([*command, "--sessions", "3"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not _stepped(client):
        assert time.monotonic() < limit
    running.kill()
    running.wait()
    while client.get("/v1/sessions").json()["sessions"]:
        assert time.monotonic() < limit


def _stepped(client: httpx.Client) -> bool:
    sessions = client.get("/v1/sessions").json()["sessions"]
    return len(sessions) == 3 and all(session["position"] > 10 for session in sessions)


def test_the_server_is_found_by_its_port(server: Server) -> None:
    """And nobody where nobody is found to listen."""
    where = address(server.url)
    assert server.pid in server_processes(where)
    assert cpu_seconds([server.pid]) > 0
    assert math.isnan(cpu_seconds([2**22 + 1]))  # beyond the largest that Linux gives
    assert server_processes(Address("127.0.0.1", 1)) == []


FRONT_END = """
import os, socket, sys
if os.fork() == 0:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
os.wait()
"""


@pytest.mark.parametrize(("started_as", "found"), [("service.fronts.front", True), ("supervise", False)])
def test_the_server_behind_a_front_end_is_found(started_as: str, found: bool) -> None:
    """A process that listens for another is part of that server; whoever else started it is not."""
    program = [sys.executable, "-c", FRONT_END, started_as]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        processes = server_processes(Address("127.0.0.1", int(parent.stdout.readline())))
        parent.stdin.close()
    assert len(processes) == 1 + found
    assert (parent.pid in processes) is found
