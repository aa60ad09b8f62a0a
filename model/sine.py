"""The classical sine exercise: learn 97 waves, continue 3 others by feeding predictions back.

Owns the waves. The definition is that of the time_sequence_prediction exercise in PyTorch's examples, down to its seed,
so that errors can be compared with it. Must not know networks or training.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PERIOD = 20  # the parameter T in sin(x / T): a period is 2 pi T, about 126 steps
LENGTH = 1000
WAVES = 100
TEST_WAVES = 3
VALIDATION_WAVES = 5  # of the 97; they choose the best weights, so that the test waves choose nothing
FEATURE = "value"
_SEED = 2  # the exercise's own: the waves are a fixed data set, whatever the seed of a training


@dataclass(frozen=True)
class Waves:
    """The exercise's waves, float32 [waves, length, 1]; test waves have twice the length, to know the future."""

    train: Tensor
    validation: Tensor
    test: Tensor


def make_waves() -> Waves:
    """The 100 waves sin((x + shift) / T) with integer shifts in [-4T, 4T): 3 test, 5 validation, 92 train."""
    shifts = np.random.RandomState(_SEED).randint(-4 * PERIOD, 4 * PERIOD, WAVES)
    steps = np.arange(2 * LENGTH)
    waves = torch.from_numpy(np.sin((steps[None, :] + shifts[:, None]) / PERIOD)).float()[..., None]
    known = waves[:, :LENGTH]
    first_train = TEST_WAVES + VALIDATION_WAVES
    return Waves(known[first_train:], known[TEST_WAVES:first_train], waves[:TEST_WAVES])
