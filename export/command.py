"""`lstm-serve export` and `lstm-serve verify`: the options and their help.

Must not import torch, onnx or the engine before a command runs: `--help` answers at once and without the extra
`train`, and `verify` without `--checkpoint` runs where a server is installed and nothing else.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help="Freeze a trained network into one ONNX file, and prove that it answers alike.")


class Provider(StrEnum):
    """Where ONNX Runtime runs the gate."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command()
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

    export_checkpoint(checkpoint, to, Console(), force=force)


@app.command()
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
