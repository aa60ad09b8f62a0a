"""How far a training has come, and the learning rate that belongs there. Knows numbers only."""

import math

WARM_UP = 0.02  # share of the training in which the rate rises: the first gradients of a fresh LSTM are unreliable
FLOOR = 0.005  # share of the peak rate that is left at the end


def progress(step: int, total_steps: int, elapsed_s: float, max_seconds: float | None) -> float:
    """The share of the training that is done, in [0, 1]: of the steps or of the time, whichever is further.

    A training bounded by time therefore anneals fully, as one bounded by steps does.
    """
    of_time = 0.0 if max_seconds is None else elapsed_s / max_seconds
    return min(1.0, max(step / total_steps, of_time))


def rate_factor(done: float) -> float:
    """The learning rate at progress `done`, as a share of its peak: linear warm-up, then half a cosine."""
    if done < WARM_UP:
        # Never zero: the first step would change nothing.
        return max(done / WARM_UP, FLOOR)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
