"""`lstm-serve export`, `adopt`, `quantize` and `verify`: the options and their help.

Must not import torch, onnx or the engine before a command runs: `--help` answers at once and without the extra
`train`, and `verify` without `--checkpoint` runs where a server is installed and nothing else.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

TERMINATED = 128 + signal.SIGTERM  # as a shell tells of it

app = typer.Typer(help="Freeze a trained network into one ONNX file, and prove that it answers alike.")


class Provider(StrEnum):
    """Where ONNX Runtime runs the gate."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM ends the command as an error does, so that nothing half done is left behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command(short_help="Freeze a checkpoint into an artifact.")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that `lstm-serve train` left.", metavar="CHECKPOINT")],
    to: Annotated[Path, typer.Option(help="Where the artifact goes: model_repository/NAME/VERSION/.")],
    force: Annotated[bool, typer.Option("--force", help="Replace another artifact that stands there.")] = False,
) -> None:
    """Freeze a checkpoint into one ONNX file, if it passes the parity gate.

    The gate runs random sequences through PyTorch and through the engine that serves, whole, in chunks and step by
    step, alone and in ragged batches, and compares outputs and final states. A file that fails is not written.
    """
    from export.freezing import export_checkpoint  # needs torch and onnx

    with _ending_in_order():
        export_checkpoint(checkpoint, to, Console(), force=force)


Names = list[str] | None  # an option that may be given several times


@app.command(short_help="Make an artifact of any stateful ONNX model.")
def adopt(
    file: Annotated[Path, typer.Argument(help="ONNX model with states as inputs and outputs.", metavar="FILE.onnx")],
    to: Annotated[Path, typer.Option(help="Where the artifact goes: model_repository/NAME/VERSION/.")],
    state: Annotated[
        Names, typer.Option(help="in:out: what goes in and comes back; in:none: no state; repeatable.")
    ] = None,
    constant: Annotated[
        Names,
        typer.Option(help="name=NUMBER or name=FILE.npy: an input that always has one value; repeatable."),
    ] = None,
    batch_axis: Annotated[
        Names,
        typer.Option(help="Axis that counts rows: a number for all sequences, none, or name=...; repeatable."),
    ] = None,
    time_axis: Annotated[
        Names, typer.Option(help="Axis that counts steps: a number for all sequences, none, or name=...; repeatable.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Input with each row's number of steps; none: no input is.")
    ] = None,
    initial: Annotated[
        Names, typer.Option(help="name=zeros or name=FILE.npy: a state before the first step; repeatable.")
    ] = None,
    shape: Annotated[
        Names,
        typer.Option(help="name=2,?,64: lengths that the graph leaves open, ? for one that varies; repeatable."),
    ] = None,
    unbatched: Annotated[
        bool, typer.Option("--unbatched", help="Serve one row per call, as for a model whose rows leak.")
    ] = False,
    provider: Annotated[Provider, typer.Option(help="Execution provider to prove on.")] = Provider.cpu,
    force: Annotated[bool, typer.Option("--force", help="Replace another artifact that stands there.")] = False,
) -> None:
    """Turn a stateful ONNX model that was made elsewhere into an artifact, with a proof that it is served right.

    States, axes and lengths are found by names, shapes and trial runs, and shown as a table; the options correct it.
    The model is then run through the engine that serves: do rows stay apart, does a batch answer as one row alone,
    may sequences be cut, does an exported state go on. A model whose rows leak into each other is refused.
    """
    from export.adoption import wishes  # needs numpy
    from export.adoption.adopting import adopt_file  # needs onnx and ONNX Runtime

    said = wishes.Wishes(
        states=wishes.pairs(state or []),
        constants=wishes.constants(constant or []),
        batch_axes=wishes.axes("--batch-axis", batch_axis or []),
        time_axes=wishes.axes("--time-axis", time_axis or []),
        lengths=lengths,
        initial=wishes.initial(initial or []),
        shapes=wishes.shapes(shape or []),
        unbatched=unbatched,
        provider=provider.value,
    )
    with _ending_in_order():
        adopt_file(file, to, said, Console(emoji=False), force=force)


class Kind(StrEnum):
    """What an artifact can be quantised to."""

    int8 = "int8"
    int8_weights = "int8-weights"
    float16 = "float16"


@app.command(short_help="Make an artifact of fewer bits.")
def quantize(
    artifact: Annotated[
        Path, typer.Argument(help="File of an artifact: model_repository/NAME/VERSION/model.onnx.", metavar="ARTIFACT")
    ],
    to: Annotated[Path, typer.Option(help="Where the new artifact goes: model_repository/NAME/VERSION/.")],
    kind: Annotated[
        Kind,
        typer.Option(
            "--type",
            help="int8: faster on the CPU. int8-weights: as small, float32 arithmetic, any cell. float16: for CUDA.",
        ),
    ] = Kind.int8,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Validation data: a UTF-8 text for language, a CSV with the artifact's features for forecast.",
            show_default=False,
        ),
    ] = None,
    max_loss_increase: Annotated[
        float, typer.Option(min=0, help="With --data: relative increase of the loss above which it is refused.")
    ] = 0.01,
    max_error: Annotated[
        float,
        typer.Option(
            min=0,
            help="Without --data: largest error of outputs above which it is refused, in units: of a forecast its "
            "feature's scale, of others 1, or the value itself where that is larger.",
        ),
    ] = 0.3,
    force: Annotated[
        bool, typer.Option("--force", help="Write it whatever is lost, and replace another artifact that stands there.")
    ] = False,
) -> None:
    """Make an artifact of fewer bits, and tell what it costs and brings: size, time, errors, loss.

    int8 is ONNX Runtime's dynamic quantisation of LSTM and MatMul, with ranges that are the same in every call: rows
    stay apart and answers bit-exact. RNN and GRU have no int8 kernel. Too great a loss of quality is refused.
    Sessions of int8 and float16 artifacts no longer show their gates; those of int8-weights do.
    """
    from export.quantization.quantising import Limits, quantise_file  # needs onnx and ONNX Runtime

    limits = Limits(max_loss_increase, max_error)
    with _ending_in_order():
        quantise_file(artifact, to, kind.value, data, limits, Console(), force=force)


@app.command(short_help="Check an artifact on this machine.")
def verify(
    artifact: Annotated[
        Path, typer.Argument(help="File of an artifact: model_repository/NAME/VERSION/model.onnx.", metavar="ARTIFACT")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Compare with this checkpoint in PyTorch, too (extra `train`).", show_default=False),
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Execution provider of ONNX Runtime.")] = Provider.cpu,
) -> None:
    """Check an artifact on this machine: its signature, and that rows answer alike however they are run.

    Exit status 0 says that the service can rely on it here.
    """
    from export.verifying import verify_artifact  # needs ONNX Runtime

    verify_artifact(artifact, checkpoint, provider.value, Console())
