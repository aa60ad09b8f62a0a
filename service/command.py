"""The server's commands: ``serve`` and ``models``. Nothing heavy is imported before one of them is called."""

import inspect
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table

from service.settings import Settings, load_settings

app = typer.Typer()


def serve(**chosen: Any) -> None:  # noqa: ANN401 - the options are the settings, see below
    """Serve the models of the repository over HTTP.

    Every option can also be set as an environment variable: --max-batch is LSTM_SERVE_MAX_BATCH.
    """
    settings = load_settings(**{name: value for name, value in chosen.items() if value is not None})
    from service.__main__ import run

    run(settings)


def models(
    model_repository: Annotated[str | None, typer.Option(help="folder of NAME/VERSION/model.onnx")] = None,
) -> None:
    """List the models of the repository, and what cannot be served, with the reason."""
    chosen = {"model_repository": model_repository} if model_repository else {}
    settings = load_settings(tune=False, **chosen)
    from service.engine.repository import load_repository

    loaded, problems = load_repository(settings.model_repository, settings)
    table = Table("model", "task", "cell", "state", "on", "bit-exact", "fingerprint", box=None)
    for m in loaded:
        e, s = m.engine, m.engine.signature
        exact = "no" if not e.bit_exact else "yes" if e.min_rows == 1 else f"from {e.min_rows} rows"
        state = f"{e.layout.row_bytes} B"
        table.add_row(f"{m.name}/{m.version}", s.task, s.cell or "-", state, e.provider, exact, e.fingerprint[:12])
    console = Console()
    console.print(table)
    for problem in problems:
        console.print(f"left out: {problem}", markup=False, highlight=False)


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """A setting as an option of the command line. Values are checked by the settings themselves, in one place."""
    default = field.get_default()
    shown = "" if default is PydanticUndefined else f" [default: {default}]"
    option = typer.Option(help=f"{field.description}{shown}", show_default=False, metavar=_metavar(field.annotation))
    kind = bool | None if field.annotation is bool else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _metavar(annotation: Any) -> str | None:  # noqa: ANN401 - any annotation of a setting
    """How the value is shown: its choices, or its kind."""
    if annotation is bool:
        return None
    return "|".join(get_args(annotation)) or annotation.__name__.upper()


serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads the options from here
    [_option(name, field) for name, field in Settings.model_fields.items()]
)
app.command()(serve)
app.command(short_help="List the models of the repository.")(models)
