"""Where sessions are kept, as it is written in a setting: ``sqlite:PATH``, or the URL of a Redis or Valkey.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                                    one server; rediss:// with TLS
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT].../SERVICE[/DB]    the master that sentinels name
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]...                  a cluster, found from any of its nodes

``valkey`` may stand for ``redis`` everywhere, and ``rediss+...`` is with TLS. A password may hold %-escapes.
"""

import re
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import unquote

Kind = Literal["sqlite", "single", "sentinel", "cluster"]
_PORTS = {"single": 6379, "cluster": 6379, "sentinel": 26379}
_FORMS = "sqlite:PATH, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,.../SERVICE or redis+cluster://HOST:PORT,..."
_REDIS = re.compile(
    r"(?P<scheme>redis|valkey)(?P<tls>s?)(\+(?P<kind>sentinel|cluster))?://"
    r"((?P<user>[^:@/]*)(:(?P<password>[^@/]*))?@)?(?P<nodes>[^/@?#]+)(/(?P<path>[^?#@]*))?"
)
_NODE = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(:(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store's place. ``path``: of SQLite; ``nodes``: (host, port); ``service``: what sentinels call the master."""

    kind: Kind
    path: str = ""
    nodes: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    service: str = ""
    db: int = 0

    @property
    def takes_replicas(self) -> bool:
        """Whether a commit can wait for replicas: those of one Redis."""
        return self.kind in ("single", "sentinel")


def parse(text: str) -> StoreUrl:
    """The place that a setting names; ValueError says what was expected, and shows no password."""
    if text.startswith("sqlite:"):
        return _sqlite(text)
    found = _REDIS.fullmatch(text)
    if found is None:
        raise ValueError(f"store {redacted(text)!r} is none of {_FORMS}")
    kind = cast("Kind", found["kind"] or "single")
    nodes = tuple(_node(text, node, _PORTS[kind]) for node in found["nodes"].split(","))
    if kind == "single" and len(nodes) > 1:
        raise ValueError(f"store {redacted(text)!r} names several servers: write redis+cluster or redis+sentinel")
    names = [name for name in (found["path"] or "").split("/") if name]
    service = names.pop(0) if kind == "sentinel" and names else ""
    if kind == "sentinel" and not service:
        raise ValueError(f"store {redacted(text)!r} does not name the service that the sentinels watch: .../SERVICE")
    if len(names) > (kind != "cluster") or not all(name.isascii() and name.isdigit() for name in names):
        expected = "a cluster has no databases" if kind == "cluster" else "a database is a number"
        raise ValueError(f"store {redacted(text)!r} ends in {'/'.join(names)!r}: {expected}")
    user, password = (unquote(part) if part else None for part in (found["user"], found["password"]))
    db = int(names[0]) if names else 0
    return StoreUrl(kind, "", nodes, found["tls"] == "s", user, password, service, db)


def redacted(text: str) -> str:
    """A store's place without user and password, for logs and errors, however those are written."""
    return re.sub(r":.*@", "://...@", text, flags=re.DOTALL)


def _sqlite(text: str) -> StoreUrl:
    path = text.removeprefix("sqlite:")
    if not path:
        raise ValueError(f"store {text!r} is none of {_FORMS}")
    if path.startswith((":", "file:")):  # SQLite would take these for something else than a file's path
        raise ValueError(f"store {text!r} names no plain file; to keep nothing, choose durability memory")
    return StoreUrl("sqlite", path)


def _node(text: str, node: str, port: int) -> tuple[str, int]:
    found = _NODE.fullmatch(node)
    if found is None or not _is_host(found["host"]) or (found["port"] and not 0 < int(found["port"]) < 65536):
        raise ValueError(f"store {redacted(text)!r}: {node!r} is not HOST or HOST:PORT")
    return found["host"].strip("[]"), int(found["port"] or port)


def _is_host(name: str) -> bool:
    """Whether it could be looked up: no part of it is empty or too long."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True
