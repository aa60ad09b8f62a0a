"""What is shown of a session: on a terminal, or as JSON. Never its state, which is its client's."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from service.state import Identity, Record
from service.stores.base import Ended, Listed

_WIDTH = 10_000  # of a table at most: nothing of it is cut off, the terminal may wrap it


def show_all(found: Iterable[Listed], *, as_json: bool) -> int:
    """A table of sessions, or a JSON object per line; how many there were."""
    table = Table("session", "owner", "model", "position", "expires at", box=None)
    count = 0
    for count, s in enumerate(found, 1):  # noqa: B007 - it is the answer
        document = _identity(s.identity) | {"position": s.position, "expires_at": _time(s.expires_at)}
        if as_json:
            print(json.dumps(document))  # noqa: T201 - it is what was asked for
        else:
            model = f"{s.identity.model}/{s.identity.version}"
            table.add_row(s.identity.id, s.identity.owner or "-", model, str(s.position), document["expires_at"])
    if not as_json:
        Console(width=_WIDTH).print(table, markup=False)
    return count


def show_one(known: Record | Ended, *, as_json: bool) -> None:
    """All that is to be known of a session but its state."""
    document = _ended(known) if isinstance(known, Ended) else _record(known)
    if as_json:
        print(json.dumps(document))  # noqa: T201 - it is what was asked for
        return
    table = Table(box=None, show_header=False)
    for name, value in document.items():
        table.add_row(name.replace("_", " "), "-" if value in ("", None) else str(value))
    Console(width=_WIDTH).print(table, markup=False, highlight=False)


def _record(r: Record) -> dict[str, Any]:
    return _identity(r.identity) | {
        "fingerprint": r.identity.fingerprint,
        "ttl_s": r.identity.ttl_s,
        "gates": r.identity.gates,
        "position": r.position,
        "revision": r.revision,
        "expires_at": _time(r.expires_at),
        "state_bytes": len(r.row),
        "output_bytes": len(r.output),
        "trace_bytes": len(r.trace),
        "answers_kept": len(r.answers),
        "answer_bytes": sum(answer.size() for answer in r.answers),
    }


def _ended(ended: Ended) -> dict[str, Any]:
    return {"id": ended.id, "owner": ended.owner, "ended": ended.reason, "ended_at": _time(ended.at)}


def _identity(i: Identity) -> dict[str, Any]:
    made = _time(i.created_at)
    return {"id": i.id, "owner": i.owner, "model": i.model, "version": i.version, "created_at": made}


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError):
        return f"damaged ({seconds!r})"
