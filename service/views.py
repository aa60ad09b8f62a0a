"""What a client is shown of a chunk's outputs: the last step or all of them, the most likely symbols or the numbers."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from msgspec import Struct

from service.state import Tensors

_largest = np.maximum.reduce  # an array's own method takes a detour through Python


class View(Struct, frozen=True):
    """``every``: all steps instead of the last. ``top_k``: so many symbols of a language model; 0 for other models."""

    every: bool = False
    top_k: int = 0

    @staticmethod
    @lru_cache(maxsize=256)
    def of(every: bool, top_k: int) -> "View":
        """One that may have been made before: most requests ask for the same."""
        return View(every, top_k)

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
    asked = {view.top_k for view in views}
    if len(asked) == 1:
        return _each(top(last, asked.pop()))
    shown: list[Tensors] = [{}] * len(views)
    for k in asked:
        rows = [i for i, view in enumerate(views) if view.top_k == k]
        for i, tops in zip(rows, _each(top(last[rows], k)), strict=True):
            shown[i] = tops
    return shown


def _each(found: Tensors) -> list[Tensors]:
    """``tokens`` and ``logprobs`` [rows, k], row by row."""
    return [{"tokens": t, "logprobs": p} for t, p in zip(found["tokens"], found["logprobs"], strict=True)]


def top(logprobs: np.ndarray, k: int) -> Tensors:
    """The k largest of the last axis, falling: ``logprobs`` [..., symbols] -> ``tokens``, ``logprobs`` [..., k].

    Of equal values the one with the smaller index comes first.
    """
    rows = logprobs.reshape(-1, logprobs.shape[-1])
    if k == 1:
        tokens, shown = rows.argmax(1), _largest(rows, 1)
    else:
        tokens = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        shown = rows[np.arange(len(rows))[:, None], tokens]
    shape = (*logprobs.shape[:-1], k)
    # A copy, also because a view would keep all symbols' order in memory.
    return {"tokens": tokens.astype(token_type(rows.shape[1])).reshape(shape), "logprobs": shown.reshape(shape)}


@cache
def token_type(symbols: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds a token: answers are kept, and most of an answer are tokens."""
    return np.min_scalar_type(symbols - 1)
