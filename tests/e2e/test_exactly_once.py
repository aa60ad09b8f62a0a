"""No acknowledged step is lost and none is applied twice, whatever happens to the connection and the process.

The witness is a model whose state is a running sum of whole numbers: a step that is lost or doubled shows in every
later answer.
"""

import asyncio
import contextlib
import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support import artifacts
from tests.support.server import Server

CLIENTS, STEPS, KILLS = 16, 120, 6


@dataclass
class History:
    """What a client sent and was told."""

    session: str = ""
    position: int = 0
    total: int = 0
    repeats: int = 0
    dropped: int = 0
    doubts: list[str] = field(default_factory=list)


@pytest.mark.parametrize(("durability", "http_workers"), [("commit", 0), ("fsync", 0), ("commit", 2)])
async def test_nothing_is_lost_and_nothing_doubled(tmp_path: Path, durability: str, http_workers: int) -> None:
    """Every step sent twice, connections dropped at random, a process killed at random moments."""
    rng = random.Random(f"{durability} {http_workers}")
    models = artifacts.repository(tmp_path / "models", sum=artifacts.running_sum)
    (tmp_path / "server").mkdir()
    with Server(tmp_path / "server", models, durability=durability, http_workers=http_workers) as server:
        histories = [History() for _ in range(CLIENTS)]
        clients = [asyncio.create_task(_client(server, h, random.Random(i))) for i, h in enumerate(histories)]
        for _ in range(KILLS):
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            if http_workers:
                _kill_any(server, rng)
            else:
                server.kill()
                await asyncio.to_thread(server.start)
        await asyncio.gather(*clients)
        with server.client() as client:
            for h in histories:
                assert h.doubts == []
                assert client.get(h.session).json()["position"] == h.position == STEPS
    assert sum(h.repeats for h in histories) >= CLIENTS * STEPS / 4, "repeats were not exercised"
    assert sum(h.dropped for h in histories) > 0, "dropped connections were not exercised"


def _kill_any(server: Server, rng: random.Random) -> None:
    """Kill the engine or a front end, which may just be starting; the others go on, and it is started again."""
    for kind in rng.sample(["engine", "front"], 2):
        if pids := server.children(kind):
            os.kill(rng.choice(pids), signal.SIGKILL)
            return


async def _client(server: Server, h: History, rng: random.Random) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        h.session = await _created(server, client)
        while h.position < STEPS:
            values = [rng.randrange(1000) for _ in range(min(rng.choice([1, 1, 2, 5]), STEPS - h.position))]
            body = {"inputs": values, "position": h.position}
            first = await _acknowledged(server, client, h, body, rng)
            h.total += sum(values)
            if first["outputs"]["y"] != [float(h.total)]:
                h.doubts.append(f"at {h.position}: told {first['outputs']['y']}, expected {h.total}")
            second = await _acknowledged(server, client, h, body, rng)
            if second != first:
                h.doubts.append(f"at {h.position}: the repeat was told {second}, not {first}")
            h.repeats += 1
            h.position += len(values)


async def _created(server: Server, client: httpx.AsyncClient) -> str:
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = await client.post(f"{server.url}/v1/sessions", json={"model": "sum"})
            if answer.status_code == 201:
                return str(answer.headers["location"])
        await asyncio.sleep(0.05)


async def _acknowledged(
    server: Server, client: httpx.AsyncClient, h: History, body: dict[str, object], rng: random.Random
) -> dict[str, dict[str, list[float]]]:
    """Send until an answer comes; at random, hang up before it can, but not while it may be connecting."""
    connected = True
    while True:
        patience = rng.choice([30.0, 30.0, 30.0, 0.002]) if connected else 30.0
        connected = False
        try:
            async with asyncio.timeout(patience):
                answer = await client.post(f"{server.url}{h.session}/steps", json=body)
        except TimeoutError:
            h.dropped += 1
            continue
        except httpx.TransportError:
            await asyncio.sleep(0.05)
            continue
        if answer.status_code == 200:
            told: dict[str, dict[str, list[float]]] = answer.json()
            return told
        if answer.status_code != 503:
            h.doubts.append(f"at {body['position']}: {answer.status_code} {answer.text}")
            raise AssertionError(h.doubts[-1])
