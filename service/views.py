"""What a client is shown of a chunk's outputs: the last step or all of them, the most likely symbols or the numbers."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from service.state import Tensors


class View(Struct, frozen=True):
    """``every``: all steps instead of the last. ``top_k``: so many symbols of a language model; 0 for other models."""

    every: bool = False
    top_k: int = 0

    def show(self, outputs: Tensors) -> Tensors:
        """``outputs``, each [steps, *step], as they are shown: [steps, ...] or, of the last step, [...].

        With ``top_k`` the first output, log-probabilities over the vocabulary, becomes ``tokens`` and
        ``logprobs``, each [k], the most likely first.
        """
        shown = outputs if self.every else {name: values[-1] for name, values in outputs.items()}
        if self.top_k == 0:
            # Copies: a kept answer that is a view would keep the outputs of its whole tick in memory.
            return {name: np.array(values, order="C") for name, values in shown.items()}
        return top(next(iter(shown.values())), self.top_k)

    def join(self, segments: list[Tensors]) -> Tensors:
        """What is shown of a chunk that was run in segments, each of which was shown by this view."""
        if not self.every:
            return segments[-1]
        return {name: np.concatenate([s[name] for s in segments]) for name in segments[0]}


def show_last(views: Sequence[View], last: np.ndarray) -> list[Tensors]:
    """What ``show`` gives for one step each, of many rows at once: ``last`` [rows, symbols], all with ``top_k``."""
    shown: list[Tensors] = [{}] * len(views)
    for k in {view.top_k for view in views}:
        rows = [i for i, view in enumerate(views) if view.top_k == k]
        found = top(last if len(rows) == len(views) else last[rows], k)  # each [rows, k]
        for i, tokens, logprobs in zip(rows, found["tokens"], found["logprobs"], strict=True):
            shown[i] = {"tokens": tokens, "logprobs": logprobs}
    return shown


def top(logprobs: np.ndarray, k: int) -> Tensors:
    """The k largest of the last axis, falling: ``logprobs`` [..., symbols] -> ``tokens``, ``logprobs`` [..., k].

    Of equal values the one with the smaller index comes first.
    """
    if k == 1:
        tokens = logprobs.argmax(axis=-1, keepdims=True)
    else:
        tokens = np.argsort(-logprobs, axis=-1, kind="stable")[..., :k]
    shown = np.take_along_axis(logprobs, tokens, axis=-1)
    # A copy, also because a view would keep all symbols' order in memory.
    return {"tokens": tokens.astype(token_type(logprobs.shape[-1])), "logprobs": shown}


def token_type(symbols: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds a token: answers are kept, and most of an answer are tokens."""
    return np.min_scalar_type(symbols - 1)
