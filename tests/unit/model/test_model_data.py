"""Streams, texts and waves: nothing is lost, doubled or seen too early."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model import sine, text
from model.errors import DataError
from model.streams import IGNORED, cut, cut_all, parallel


def test_cut_streams_are_contiguous() -> None:
    """Each stream goes on where the one before it ended, and targets are the inputs one step later."""
    streams = cut(torch.arange(32), 3)
    assert streams.inputs.flatten().tolist() == list(range(30))
    assert streams.targets.flatten().tolist() == list(range(1, 31))
    assert (streams.batch, streams.length) == (3, 10)


@pytest.mark.parametrize("tokens", [2, 5, 16, 17, 18, 100])
def test_every_token_but_the_first_is_predicted_once(tokens: int) -> None:
    """Validation streams count each token except the first exactly once, whatever the length."""
    streams = cut_all(torch.arange(tokens), 4)
    counted = streams.targets != IGNORED
    assert sorted(streams.targets[counted].tolist()) == list(range(1, tokens))
    assert torch.equal(streams.inputs[counted] + 1, streams.targets[counted])


def test_chunks_cover_a_stream_in_order() -> None:
    """Chunks put together are the stream, the last one being shorter."""
    streams = parallel(torch.arange(22).view(2, 11))
    chunks = list(streams.chunks(4))
    assert [chunk[0].shape[1] for chunk in chunks] == [4, 4, 2]
    assert torch.equal(torch.cat([targets for _, targets in chunks], dim=1), streams.targets)


def test_too_short_sequence_is_refused() -> None:
    """A sequence that cannot fill its streams is a sentence, not an empty tensor."""
    with pytest.raises(DataError, match="too few"):
        cut(torch.arange(3), 3)
    with pytest.raises(DataError, match="too few"):
        cut_all(torch.arange(1), 1)


def test_text_is_split_in_reading_order() -> None:
    """The first share of a text trains, the rest validates, and decoding both gives the text back."""
    content = "héllo wörld\n" * 100
    corpus = text.prepare(content, "x", 0.25)
    symbols = [corpus.vocabulary[i] for i in torch.cat([corpus.train, corpus.validation]).tolist()]
    assert "".join(symbols) == content
    assert (len(corpus.train), len(corpus.validation)) == (900, 300)
    assert corpus.description["characters"] == 1200


def test_text_must_be_utf8(tmp_path: Path) -> None:
    """A file in another encoding is refused by name and offset."""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8.*offset 3"):
        text.read_text(tmp_path / "latin.txt")


def test_missing_text_is_named(tmp_path: Path) -> None:
    """A text that is not there is named."""
    with pytest.raises(DataError, match=r"none\.txt"):
        text.read_text(tmp_path / "none.txt")


@pytest.mark.parametrize(("content", "said"), [("", "0 characters"), ("a" * 5000, "single character")])
def test_text_with_nothing_to_learn_is_refused(content: str, said: str) -> None:
    """A text that is too short or has one symbol only is refused."""
    with pytest.raises(DataError, match=said):
        text.prepare(content, "x", 0.1)


def test_default_corpus_is_large_and_stable() -> None:
    """The default corpus is the language reference, the same at each call."""
    content, source = text.read_text(None)
    assert source == "pydoc_data.topics"
    assert len(content) > 300_000
    assert content == text.default_corpus()


def test_waves_are_the_exercise() -> None:
    """Waves are sines with a period of 2 pi 20 steps: 97 to train (5 of them validate) and 3 to test."""
    waves = sine.make_waves()
    assert waves.train.shape == (92, 1000, 1)
    assert waves.validation.shape == (5, 1000, 1)
    assert waves.test.shape == (3, 2000, 1)
    shift = np.arcsin(waves.test[:, 0, 0].double().numpy())
    steps = np.arange(2000) / 20
    for start, wave in zip(shift, waves.test[..., 0].numpy(), strict=True):
        either = [np.sin(steps + start), np.sin(steps + np.pi - start)]  # arcsin does not know the direction
        assert min(np.abs(wave - candidate).max() for candidate in either) < 1e-3
