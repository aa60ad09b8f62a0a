"""The measurement of generation: streams are counted to the last token, and its parts do what they say."""

import asyncio
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bench.errors import BenchError
from bench.generation import Round, medians, table
from bench.inside import Bare, Inside
from bench.streams import Stream, Streamed
from service.engine.repository import load_repository
from service.settings import load_settings
from service.stores.sqlite import SqliteStore
from tests.support import artifacts

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENT = b'1c\r\ndata: {"choices":[{"text":"a"}]}\n\n\r\n'
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
FAULT = b'20\r\nevent: error\ndata: {"error":{}}\n\n\r\n'


def read(*pieces: bytes) -> tuple[Streamed, "asyncio.Future[None]"]:
    """A stream that has received these pieces."""
    told = Streamed()
    stream = Stream(b"", told)
    for piece in pieces:
        stream.data_received(piece)
    return told, stream.over


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 1000])
async def test_every_token_is_counted_once(size: int) -> None:
    """However a stream is cut into pieces, it has as many tokens as events, and a gap less."""
    whole = HEAD + 5 * EVENT + DONE
    told, over = read(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert (told.tokens, told.gaps.total) == (5, 4)
    assert over.done()
    over.result()


@pytest.mark.parametrize(
    "pieces",
    [[b"HTTP/1.1 503 Unavailable\r\n\r\n"], [HEAD + EVENT, FAULT], [HEAD, FAULT[:9], FAULT[9:]]],
    ids=["refused", "late", "at once"],
)
async def test_a_stream_that_fails_is_told(pieces: list[bytes]) -> None:
    """A refusal and an error event end the measurement; whatever came before it."""
    _, over = read(*pieces)
    with pytest.raises(BenchError):
        over.result()


async def test_a_stream_that_is_cut_short_is_told() -> None:
    """A connection that ends before the stream does is no whole stream; after it, it is nothing to tell."""
    short, whole = Stream(b"", Streamed()), Stream(b"", Streamed())
    short.data_received(HEAD + EVENT)
    whole.data_received(HEAD + EVENT + DONE)
    for stream in (short, whole):
        stream.connection_lost(None)
    with pytest.raises(BenchError):
        short.over.result()
    whole.over.result()


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is twice as slow in one round changes no ratio; each figure is the median of the rounds."""
    quick = Round(5, 40, 80, 12_000, 4, 6, 9, 12, 15)
    slow = Round(10, 80, 160, 6_000, 8, 12, 18, 24, 30)
    figures = medians([quick, slow, slow])
    assert (figures["gap_growth"], figures["prefill_share"]) == (1.5, 0.8)
    assert (figures["inside_us"], figures["streamed_per_s"]) == (80, 6_000)
    told = table(figures)
    assert "| in process, tokens per second of CPU | 12,500 |" in told
    assert "| prefill, steps per second : ONNX Runtime's | 0.80 |" in told


async def test_sessions_are_measured_without_http(tmp_path: Path) -> None:
    """All sessions stream all their steps, over the store that is named, and a step costs some time."""
    models = artifacts.repository(tmp_path / "models", language=artifacts.language)
    async with Inside.open(models, tmp_path / "inside.db", "language", streams=3) as inside:
        assert await inside.token_us(5) > 0
    with closing(SqliteStore(tmp_path / "inside.db", fsync=False)) as store:
        assert [listed.position for listed in store.page("", None, "", 10, 0.0)] == [6, 6, 6]


def test_onnx_runtime_alone_runs_the_whole_chunk(tmp_path: Path) -> None:
    """Cut or not, and in ticks of many rows, the graph takes what it is given."""
    models = artifacts.repository(tmp_path, language=artifacts.language)
    ((loaded, *_), _) = load_repository(models, load_settings(provider="cpu"))
    bare = Bare(loaded.engine)
    assert bare.tick_us(4) > 0
    assert bare.prefill_us(np.arange(300).clip(0, 5).tolist()) > 0
