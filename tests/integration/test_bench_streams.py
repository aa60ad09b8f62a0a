"""Streams of generated tokens, measured over HTTP against a running server."""

import pytest

from bench.errors import BenchError
from bench.options import address
from bench.streams import Client
from tests.support.server import Server


async def test_streams_are_measured_over_http(server: Server) -> None:
    """All tokens of all streams come, also beside a prefill."""
    with Client(address(server.url), "language") as client:
        sessions = [await client.session() for _ in range(3)]
        for told in (await client.stream(sessions, 20), await client.stream_beside([1] * 300, sessions, 20)):
            assert (told.tokens, told.gaps.total) == (60, 57)
            assert told.seconds > 0


async def test_a_refusal_ends_the_measurement(server: Server) -> None:
    """What is no language model, or not there, cannot be measured, and is not taken for slow."""
    for model in ("sum", "nobody's"):
        with Client(address(server.url), model) as client, pytest.raises(BenchError):
            await client.stream([await client.session()], 20)
