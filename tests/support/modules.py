"""Modules such as users have, none of them ours: each lays out its state in another way.

Each is a pure function (inputs, state) -> (outputs, state') in evaluation mode. ``MODULES`` tells for each what a user
would: an example call, the axes, and how its states are called.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


class Detector(nn.Module):
    """Is anybody speaking? One call is one chunk of audio; h and c lie stacked in one tensor, as in voice detectors."""

    def __init__(self, hidden: int = 16, window: int = 64) -> None:
        super().__init__()
        self.frames = nn.Conv1d(1, 24, kernel_size=window, stride=window // 2)
        self.cell = nn.LSTMCell(24, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, chunk: Tensor, state: Tensor, sr: Tensor) -> Pair:
        """Chunk [batch, samples], state [2, batch, hidden], sr [] -> probability [batch, 1], state."""
        loud = chunk * (sr / 16000.0)
        features = torch.relu(self.frames(loud[:, None])).mean(dim=-1)  # [batch, 24]
        h, c = self.cell(features, (state[0], state[1]))
        return torch.sigmoid(self.score(h)), torch.stack([h, c])


class Denoiser(nn.Module):
    """Twelve causal dilated convolutions, each with a cache of what it has heard, and a counter of samples."""

    DILATIONS = (1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8)

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.widen = nn.Conv1d(2, width, kernel_size=1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, kernel_size=3, dilation=d) for d in self.DILATIONS)
        self.narrow = nn.Conv1d(width, 2, kernel_size=1)

    def forward(self, x: Tensor, caches: list[Tensor], heard: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """[batch, time, 2], caches each [batch, width, 2 * dilation], heard int64 [batch] -> the same."""
        signal, kept = self.widen(x.transpose(1, 2)), []
        for layer, cache in zip(self.layers, caches, strict=True):
            seen = torch.cat([cache, signal], dim=2)
            kept.append(seen[:, :, -cache.shape[2] :])
            signal = signal + torch.tanh(layer(seen))
        at = heard[:, None] + torch.arange(1, x.shape[1] + 1)  # [batch, time]
        fade = (at / 20.0).clamp(max=1.0)  # fades in
        return self.narrow(signal).transpose(1, 2) * fade[..., None], kept, heard + x.shape[1]

    @classmethod
    def silence(cls, rows: int, width: int = 6) -> list[Tensor]:
        """Caches that have heard nothing."""
        return [torch.zeros(rows, width, 2 * dilation) for dilation in cls.DILATIONS]


class Projected(nn.Module):
    """nn.LSTM with a projection, so that h is narrower than c."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 12, proj_size=4, batch_first=True)

    def forward(self, x: Tensor, state: Pair) -> tuple[Tensor, Pair]:
        """[batch, time, 5], h [1, batch, 4], c [1, batch, 12] -> [batch, time, 4], h and c."""
        y, after = self.lstm(x, state)
        return y, after


class Tracker(nn.Module):
    """nn.GRU whose state has the batch first, as where models are put together with others."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 8, num_layers=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, h0: Tensor) -> Pair:
        """[time, batch, 3], h0 [batch, 2, 8] -> [time, batch, 3], h."""
        y, h = self.gru(x, h0.transpose(0, 1).contiguous())
        return x + self.head(y), h.transpose(0, 1)


class Smoother(nn.Module):
    """Exponential smoothing in float64, of all steps at once: what remains of each step k steps later, added up."""

    def __init__(self, alpha: float = 0.125) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, level: Tensor) -> Pair:
        """[batch, time, features], level [batch, features], both float64 -> the level after each step, the last."""
        steps = torch.arange(x.shape[1], dtype=torch.float64)
        ago = steps[:, None] - steps  # [time, time]
        weights = torch.where(ago >= 0, self.alpha * (1 - self.alpha) ** ago.clamp(min=0), 0.0)
        faded = (1 - self.alpha) ** (steps + 1)
        y = weights @ x + faded[:, None] * level[:, None]
        return y, y[:, -1]


class Fusion(nn.Module):
    """Two inputs, two outputs, three states of two types: a sensor and its mode, an estimate and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = nn.Embedding(4, 3)
        self.rnn = nn.RNN(5, 10, batch_first=True)
        self.head = nn.Linear(10, 2)

    def forward(self, values: Tensor, mode: Tensor, h: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        """Values [batch, time, 2], mode int64 [batch, time], h [1, batch, 10], total [batch, 2], count int64 [batch].

        Answers the states first, then the estimate and the mean, each [batch, time, 2].
        """
        y, h = self.rnn(torch.cat([values, self.mode(mode)], dim=-1), h)
        sums = total[:, None] + values.cumsum(dim=1)
        counts = count[:, None] + torch.arange(1, values.shape[1] + 1)
        return h, sums[:, -1], counts[:, -1], self.head(y), sums / counts[..., None]


class Compact(nn.Module):
    """A GRU cell whose state is kept in float16 to save room; one call is one step, without a time axis."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Pair:
        """[batch, 4], memory float16 [batch, 8] -> [batch, 2], memory."""
        h = self.cell(x, memory.float())
        return self.head(h), h.half()


@dataclass(frozen=True)
class Foreign:
    """A module and how its user would call it: ``inputs`` and ``states`` by parameter, of two rows and five steps.

    The examples are in the order of the parameters. ``time_axis`` None: one call is one step. ``state_axes``: the batch
    axes of states, where they are not the first ones. ``after`` makes of a state's name that of its next value.
    ``states_first``: so are they returned.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    states: Callable[[], dict[str, object]]
    batch_axis: int = 0
    time_axis: int | None = 1
    outputs: tuple[str, ...] = ("y",)
    constants: dict[str, Tensor] = field(default_factory=dict)
    state_axes: dict[str, int] = field(default_factory=dict)
    after: Callable[[str], str] = "{}_next".format
    states_first: bool = False

    def returned(self) -> tuple[str, ...]:
        """What ``forward`` returns, each state by the name of its parameter."""
        states = tuple(self.states())
        return (*states, *self.outputs) if self.states_first else (*self.outputs, *states)


def export_file(module: nn.Module, foreign: Foreign, path: Path, *, dynamo: bool) -> Path:
    """An ONNX file as users write it, by either exporter of torch, its batch and time axes dynamic."""
    steps = {foreign.batch_axis: "batch"} | ({} if foreign.time_axis is None else {foreign.time_axis: "time"})
    states = {parameter: _names(value, parameter) for parameter, value in foreign.states().items()}
    axes: dict[str, dict[int, str]] = dict.fromkeys((*foreign.inputs(), *foreign.outputs), steps)
    returned = []
    for name in foreign.returned():
        returned += [foreign.after(part) for part in states[name]] if name in states else [name]
    for parameter, parts in states.items():
        rows = {foreign.state_axes.get(parameter, 0): "batch"}
        axes |= dict.fromkeys([*parts, *map(foreign.after, parts)], rows)
    inputs = [*foreign.inputs(), *(part for parts in states.values() for part in parts), *foreign.constants]
    example = (*foreign.inputs().values(), *foreign.states().values(), *foreign.constants.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of their own insides, one of being old
        if dynamo:
            dynamic = [axes[name] for name in foreign.inputs()]
            dynamic += [_like(value, axes[states[name][0]]) for name, value in foreign.states().items()]
            dynamic += [{}] * len(foreign.constants)
            torch.onnx.export(
                module.eval(), example, path, dynamo=True, input_names=inputs, output_names=returned,
                dynamic_shapes=tuple(dynamic), verbose=False, external_data=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                module.eval(), example, path, dynamo=False, input_names=inputs, output_names=returned,
                dynamic_axes=axes,
            )  # fmt: skip
    return path


def _names(value: object, name: str) -> list[str]:
    if isinstance(value, Tensor):
        return [name]
    assert isinstance(value, tuple | list)
    return [f"{name}_{i}" for i in range(len(value))]


def _like(value: object, axes: dict[int, str]) -> object:
    return axes if isinstance(value, Tensor) else type(value)([axes] * len(value))  # type: ignore[arg-type, call-arg]


MODULES = {
    "detector": Foreign(
        Detector,
        lambda: {"chunk": torch.randn(2, 512)},
        lambda: {"state": torch.zeros(2, 2, 16)},
        time_axis=None,
        outputs=("probability",),
        constants={"sr": torch.tensor(8000)},
        state_axes={"state": 1},
        after="{}N".format,
    ),
    "denoiser": Foreign(
        Denoiser,
        lambda: {"x": torch.randn(2, 5, 2)},
        lambda: {"caches": Denoiser.silence(2), "heard": torch.zeros(2, dtype=torch.int64)},
        after="new_{}".format,
    ),
    "projected": Foreign(
        Projected,
        lambda: {"x": torch.randn(2, 5, 5)},
        lambda: {"state": (torch.zeros(1, 2, 4), torch.zeros(1, 2, 12))},
        state_axes={"state": 1},
    ),
    "tracker": Foreign(
        Tracker,
        lambda: {"x": torch.randn(5, 2, 3)},
        lambda: {"h0": torch.zeros(2, 2, 8)},
        batch_axis=1,
        time_axis=0,
        after=lambda _: "hn",
    ),
    "smoother": Foreign(
        Smoother,
        lambda: {"x": torch.randn(2, 5, 3, dtype=torch.float64)},
        lambda: {"level": torch.full((2, 3), 0.5, dtype=torch.float64)},
    ),
    "fusion": Foreign(
        Fusion,
        lambda: {"values": torch.randn(2, 5, 2), "mode": torch.randint(0, 4, (2, 5))},
        lambda: {"h": torch.zeros(1, 2, 10), "total": torch.zeros(2, 2), "count": torch.zeros(2, dtype=torch.int64)},
        outputs=("estimate", "mean"),
        state_axes={"h": 1},
        after="{}_out".format,
        states_first=True,
    ),
    "compact": Foreign(
        Compact,
        lambda: {"x": torch.randn(2, 4)},
        lambda: {"memory": torch.zeros(2, 8, dtype=torch.float16)},
        time_axis=None,
    ),
}
