"""Contiguous streams: how a long sequence is laid out so that the state can be carried from chunk to chunk.

Owns the cutting of sequences into streams and of streams into chunks. Must not know text, tables or networks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import DataError

IGNORED = -100  # a target that is not counted: torch's own default `ignore_index`

Chunk = tuple[Tensor, Tensor]  # inputs and targets, each [streams, time, ...]


@dataclass(frozen=True)
class Streams:
    """Parallel sequences, each read from its beginning to its end; targets are the inputs one step later."""

    inputs: Tensor  # [streams, length, ...]
    targets: Tensor  # [streams, length, ...]

    @property
    def batch(self) -> int:
        """How many streams run side by side."""
        return self.inputs.shape[0]

    @property
    def length(self) -> int:
        """Time steps of each stream."""
        return self.inputs.shape[1]

    def chunks(self, length: int) -> Iterator[Chunk]:
        """Everything, in chunks of `length` steps; the last may be shorter."""
        for start in range(0, self.length, length):
            yield self.chunk(start, length)

    def chunk(self, start: int, length: int) -> Chunk:
        """The steps from `start` on, at most `length` of them."""
        return self.inputs[:, start : start + length], self.targets[:, start : start + length]


def parallel(sequences: Tensor) -> Streams:
    """Streams of sequences [streams, length + 1, ...] that each begin with a zero state."""
    return Streams(sequences[:, :-1], sequences[:, 1:])


def cut(sequence: Tensor, streams: int) -> Streams:
    """Cut one sequence [n, ...] into `streams` contiguous parts; each part's last target begins the next part.

    At most `streams - 1` predictions at the end are left out; raises DataError where a part would be empty.
    """
    length = (len(sequence) - 1) // streams
    if length < 1:
        raise DataError(f"{len(sequence)} steps are too few to cut into {streams} streams")
    starts = torch.arange(streams)[:, None] * length + torch.arange(length + 1)  # [streams, length + 1]
    return parallel(sequence[starts])


def cut_all(tokens: Tensor, streams: int) -> Streams:
    """As `cut`, for tokens [n], but every token except the first is predicted exactly once.

    The last stream is padded, and the targets of the padding are `IGNORED`.
    """
    if len(tokens) < 2:
        raise DataError(f"{len(tokens)} tokens are too few to predict one from another")
    length = -(-(len(tokens) - 1) // streams)
    padding = streams * length - (len(tokens) - 1)
    inputs = torch.cat([tokens[:-1], tokens.new_zeros(padding)])
    targets = torch.cat([tokens[1:], tokens.new_full((padding,), IGNORED)])
    return Streams(inputs.view(streams, length), targets.view(streams, length))
