"""What the supervisor does where processes do not behave (that they are healed is shown with real ones, in e2e)."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from service.fronts.paths import BEAT
from service.fronts.supervisor import Kept, Supervisor
from service.settings import load_settings
from service.sockets import bind
from tests.support.connection import until
from tests.support.fakes import PATIENCE_S


def kept(refusals: list[int]) -> Kept:
    """A front end that is to be kept."""
    return Kept("front-0", "/nowhere", dict(os.environ), refusals.append)


async def test_a_process_that_cannot_be_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no process at all the first time, the service does not start."""
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    refusals: list[int] = []
    process = kept(refusals)
    process.start()
    await until(lambda: refusals)
    assert refusals == [1]


async def test_what_was_never_started_needs_no_end() -> None:
    """And what has ended is not told again."""
    process = kept([])
    assert process.end(signal.SIGTERM) is None


async def test_a_process_that_ends_at_once_ends_the_service(tmp_path: Path) -> None:
    """With its exit status; every other process is told to end."""
    settings = load_settings(http_workers=1, model_repository=tmp_path, port=0, durability="memory")
    with bind("127.0.0.1", 0, shared=True) as reserved:
        running = Supervisor(settings, str(tmp_path), reserved).run()
        assert await asyncio.wait_for(running, 6 * PATIENCE_S) == 2


async def test_a_child_reads_the_settings_that_were_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its environment, as JSON where they are no text; others stay open."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nenv | grep LSTM_SERVE >> "{tmp_path}/told"\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    settings = load_settings(http_workers=1, store=f"sqlite:{tmp_path}/a b.db", allow_inexact=True, port=0)
    with bind("127.0.0.1", 0, shared=True) as reserved:
        assert await asyncio.wait_for(Supervisor(settings, "/nowhere", reserved).run(), 6 * PATIENCE_S) == 3
        port = reserved.getsockname()[1]
    told = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines())
    assert told["LSTM_SERVE_STORE"] == f"sqlite:{tmp_path}/a b.db"
    assert json.loads(told["LSTM_SERVE_ALLOW_INEXACT"]) is True
    assert told["LSTM_SERVE_PORT"] == str(port)
    assert "LSTM_SERVE_MAX_BATCH" not in told


async def test_a_process_that_hangs_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was ready, runs, and is not heard of for so many beats: another one takes its place."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho started >> "{tmp_path}/told"\necho ready\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("service.fronts.supervisor.BEAT_S", 0.01)
    process = kept([])
    process.start()
    await until(lambda: (tmp_path / "told").exists() and len((tmp_path / "told").read_text().split()) > 1)
    ended = process.end(signal.SIGKILL)
    assert ended is not None
    await asyncio.wait_for(ended, PATIENCE_S)


async def test_a_process_that_is_heard_of_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it beats, and also when it has ended by itself."""
    monkeypatch.setattr("service.fronts.supervisor._SILENT_BEATS", 1)
    monkeypatch.setattr("service.fronts.supervisor.BEAT_S", PATIENCE_S)
    killed: list[bool] = []
    told = asyncio.StreamReader()
    told.feed_data(BEAT * 3)
    told.feed_eof()
    fake = cast("asyncio.subprocess.Process", SimpleNamespace(kill=lambda: killed.append(True)))
    await asyncio.wait_for(kept([])._listen(fake, told), PATIENCE_S)
    assert killed == []
