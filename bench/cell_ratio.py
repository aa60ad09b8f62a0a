"""How long a step of each cell takes in PyTorch, beside nn.LSTM: layers alone, no embedding, no head, no optimizer.

    python -m bench.cell_ratio [--layers 2] [--hidden 128] [--batch 32] [--steps 64] [--rounds 30] [--bfloat16]

A training step is forward and backward. The cells take turns in each round, and the quickest round of each counts:
machines are noisy, so compare figures of one run with each other. One thread.
"""

import bench.extra  # isort: skip  # noqa: F401 - before what it looks for
import argparse
import time
from collections.abc import Callable

import torch

from model.cells import CELLS, Cell

WARM_UP = 3  # calls before the measured ones: TorchScript looks at its first inputs before it settles


def training(cell: Cell, options: argparse.Namespace) -> Callable[[], None]:
    """A function that runs a chunk of `steps` forth and back."""
    forth = _forward(cell, options, options.batch, options.steps)

    def run() -> None:
        torch.autograd.backward(forth().float().square().mean())

    return run


def inference(cell: Cell, options: argparse.Namespace) -> Callable[[], None]:
    """A function that runs a chunk of `steps` without gradients."""
    forth = _forward(cell, options, options.batch, options.steps)

    def run() -> None:
        with torch.inference_mode():
            forth()

    return run


def single(cell: Cell, options: argparse.Namespace) -> Callable[[], None]:
    """A function that runs one step of one sequence without gradients."""
    forth = _forward(cell, options, 1, 1)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(options.steps):
                forth()

    return run


def _forward(cell: Cell, options: argparse.Namespace, batch: int, steps: int) -> Callable[[], torch.Tensor]:
    width, layers = options.hidden, options.layers
    recurrent = cell.make(width, width, layers, batch_first=True, dropout=0.0)
    inputs = torch.randn(batch, steps, width)
    states = tuple(torch.zeros(layers, batch, width) for _ in cell.states)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            outputs: torch.Tensor = recurrent(inputs, states if len(states) > 1 else states[0])[0]
        return outputs

    return forward


def measure(make: Callable[[Cell, argparse.Namespace], Callable[[], None]], options: argparse.Namespace) -> list[float]:
    """Seconds per step of each cell, in the order of the table."""
    runs = [make(cell, options) for cell in CELLS.values()]
    for run in runs * WARM_UP:
        run()
    best = [float("inf")] * len(runs)
    for _ in range(options.rounds):
        for i, run in enumerate(runs):
            started = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - started)
    return [seconds / options.steps for seconds in best]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 2), ("hidden", 128), ("batch", 32), ("steps", 64), ("rounds", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bfloat16", action="store_true", help="matrix products under autocast")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = {
        f"training, batch {options.batch}": training,
        f"inference, batch {options.batch}": inference,
        "one step alone": single,
    }
    print(f"{'µs per step':<12}" + "".join(f"{title:>30}" for title in columns))
    figures = [measure(make, options) for make in columns.values()]
    reference = list(CELLS).index("lstm")
    for i, name in enumerate(CELLS):
        cells = [f"{best[i] * 1e6:.1f} ({best[i] / best[reference]:.2f} x lstm)" for best in figures]
        print(f"{name:<12}" + "".join(f"{cell:>30}" for cell in cells))


if __name__ == "__main__":
    main()
