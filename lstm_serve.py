"""The one command line, ``lstm-serve``: it puts the stations' commands together and turns errors into one sentence.

Each station keeps its own commands (``model/command.py``, ``export/command.py``, ``service/command.py``,
``service/admin/command.py``, ``bench/command.py``); none of them imports torch, onnx or the server before it is really
called, so that help is quick and a server needs no torch.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

import bench.command
import export.command
import model.command
import model.studies.command
import service.admin.command
import service.command
from bench.errors import BenchError
from export.errors import ExportError
from model.errors import Interrupted, ModelError
from service.errors import ServiceError, StoreUnavailable

INTERRUPTED = 130  # as a shell tells of Ctrl-C
EXTRA_PACKAGES = ("torch", "onnx", "safetensors", "matplotlib")  # what the extra `train` brings

app = typer.Typer(
    name="lstm-serve",
    help="Train, export and serve recurrent models whose sessions keep their state.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help tells every option's whole name, also on a narrow terminal
)
app.add_typer(model.command.app, name="train", short_help="Train a recurrent network.")
app.add_typer(model.studies.command.app, name="study", short_help="Measure what the cells differ in.")
app.add_typer(service.admin.command.app, name="sessions", short_help="Move, list and check the sessions of a store.")
for commands in (export.command.app, service.command.app, bench.command.app):
    app.registered_commands += commands.registered_commands


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lstm-serve {version('lstm-serve')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command."""


def main() -> None:
    """Run the command line; exit status 2 for what the user can mend, with one sentence on standard error."""
    try:
        app()
    except Interrupted as error:
        _fail(str(error), INTERRUPTED)
    except (ServiceError, ExportError, ModelError, BenchError) as error:
        _fail(f"{error}{_why(error)}")
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_PACKAGES:
            raise
        _fail(f"this command needs {error.name}, which the extra 'train' brings: pip install 'lstm-serve[train]'")


def _why(error: Exception) -> str:
    """What a store said itself: a server keeps that for its log, and here there is none."""
    said = str(error.__cause__).splitlines() if isinstance(error, StoreUnavailable) and error.__cause__ else []
    return f": {said[0]}" if said else ""


def _fail(sentence: str, status: int = 2) -> None:
    Console(stderr=True, soft_wrap=True).print(f"lstm-serve: {sentence}", markup=False, emoji=False, highlight=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
