"""`lstm-serve sessions move|list|show|expire|check`: the options and their help. Works on stores, not on servers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.errors import ServiceError

app = typer.Typer(
    name="sessions",
    help="Move, list, show, expire and check the sessions of a store, whether servers run over it or not.",
    no_args_is_help=True,
)
_BAD = 1  # exit status where something was left, or cannot be decoded, or is not there

Place = Annotated[
    str | None,
    typer.Option("--store", help="The store: sqlite:PATH, redis://..., as the server's setting, and that unless told."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


@app.command()
def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The store that has them: sqlite:PATH, redis://...")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The store that is to have them.")],
    keep: Annotated[bool, typer.Option("--keep", help="Copy them: FROM keeps them, too.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace copies at TO that FROM has gone beyond since they were made.")
    ] = False,
    replicas: Annotated[int, typer.Option(help="Replicas of a Redis TO that have to have what is moved.", min=0)] = 0,
) -> None:
    """Move all sessions from one store to another.

    Each is written to TO, read back and compared, and then dropped from FROM. Call it again where it was interrupted.
    Let no server run over FROM: it would not know its sessions any more; one that is stepped meanwhile is left there.
    Exit status 1 where sessions were left, each told with the reason. What is remembered of ended sessions stays.
    """
    from service.admin.moving import Move
    from service.admin.places import opened

    with opened(source) as here, opened(target, destination=True, replicas=replicas) as there, _progress() as bar:
        for warning in there.warnings():
            _say(bar.console, f"warning: {warning}")
        moving = Move(here, there, _teller(bar.console, "left"), keep=keep, replace=replace)
        moving.run(_advance(bar, "copying" if keep else "moving", here.count()))
    _say(Console(), f"{moving.moved} sessions {'copied' if keep else 'moved'}, {moving.left} left")
    if moving.left:
        raise typer.Exit(_BAD)


@app.command("list")
def list_sessions(
    store: Place = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option(help="So many at most; 0: all.", min=0)] = 100,
    as_json: Json = False,
) -> None:
    """List the sessions that have not expired, an owner's in the order of their ids, those of all in none.

    Exit status 1 where some cannot be decoded.
    """
    from service.admin.places import opened
    from service.admin.showing import show_all
    from service.admin.walking import first, listed

    failed: list[str] = []
    with opened(store) as opened_store:
        tell = _teller(Console(stderr=True), "not listed", failed.append)
        count = show_all(first(listed(opened_store, owner, model, _now(), tell), limit), as_json=as_json)
    if count == limit:
        _say(Console(stderr=True), f"the first {limit} are listed: --limit lists more")
    if failed:
        raise typer.Exit(_BAD)


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The session.")], store: Place = None, as_json: Json = False
) -> None:
    """Show whose a session is, where it stands, when it expires, and what it takes; never its state."""
    from service.admin.places import opened
    from service.admin.showing import show_one

    with opened(store) as opened_store:
        known = opened_store.load([id]).get(id)
    if known is None:
        _fail(f"the store has no session {id}")
    if isinstance(known, ServiceError):
        _fail(f"{id}: {known.detail}")
    show_one(known, as_json=as_json)


@app.command()
def expire(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="End this one, whatever its time.")] = None,
    store: Place = None,
) -> None:
    """End the sessions whose time is over, as a server does by itself; or one session, now, and for good.

    A client is told 410, that it expired. This also ends a session that cannot be decoded.
    """
    from service.admin.places import opened
    from service.admin.walking import expired

    with opened(store) as opened_store:
        if id is not None:
            if not opened_store.end(id, "expired", _now()):
                _fail(f"the store has no session {id}, or it has ended")
            _say(Console(), f"ended {id}")
            return
        with _progress() as bar:
            passed, count = _advance(bar, "ending", None), 0
            for ended in expired(opened_store, _now()):
                count += len(ended)
                passed(len(ended))
    _say(Console(), f"{count} sessions had expired, and were ended")


@app.command()
def check(
    store: Place = None,
    model_repository: Annotated[
        Path | None,
        typer.Option(help="Hold the size of every row against its model in this folder.", file_okay=False, exists=True),
    ] = None,
) -> None:
    """Read every session, and name those that cannot be decoded or are damaged, and what is damaged in the file of
    SQLite. No session is changed.

    Exit status 1 where there is anything.
    """
    from service.admin.places import opened
    from service.admin.walking import check as checked

    sizes = None if model_repository is None else _row_bytes(model_repository)
    with opened(store) as opened_store, _progress() as bar:
        damage = opened_store.damage()
        for sentence in damage:
            _say(bar.console, f"bad: the file: {sentence}")
        passed = _advance(bar, "checking", opened_store.count())
        found = checked(opened_store, sizes, _teller(bar.console, "bad"), passed)
    missing = f", {found.unserved} of models that are not in {model_repository}" if found.unserved else ""
    _say(Console(), f"{found.sessions} sessions checked, {found.bad} bad{missing}")
    if found.bad or damage:
        raise typer.Exit(_BAD)


def _row_bytes(repository: Path) -> dict[str, int]:
    from service.engine.repository import load_repository
    from service.settings import load_settings

    loaded, _ = load_repository(repository, load_settings(model_repository=repository, tune=False))
    return {m.engine.fingerprint: m.engine.layout.row_bytes for m in loaded}


def _now() -> float:
    from service.clock import SystemClock

    return SystemClock.now()


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


def _advance(bar: Progress, doing: str, total: int | None) -> Callable[[int], None]:
    task = bar.add_task(doing, total=total)
    return lambda count: bar.advance(task, count)


def _teller(
    console: Console, verdict: str, also: Callable[[str], object] = lambda id: None
) -> Callable[[str, str], None]:
    def tell(id: str, why: str) -> None:
        also(id)
        _say(console, f"{verdict}: {id}: {why}")

    return tell


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _fail(sentence: str) -> NoReturn:
    _say(Console(stderr=True), f"lstm-serve: {sentence}")
    raise typer.Exit(_BAD)
