"""Through all sessions of a store, of all owners: read in batches, and judged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from service.errors import StoreUnavailable, UndecodableState
from service.state import Record
from service.stores.base import Ended, Listed, Store

BATCH = 256  # sessions that are read at once
Known = Record | Ended | UndecodableState | StoreUnavailable
Tell = Callable[[str, str], None]  # of a session's id, what is to be said of it


def batches(store: Store) -> Iterator[list[str]]:
    """The ids of all sessions, some at a time; those that begin or end meanwhile may be missing, some come twice."""
    cursor = ""
    while True:
        ids, cursor = store.walk(cursor, BATCH)
        if ids:
            yield list(dict.fromkeys(ids))
        if not cursor:
            return


def records(store: Store, ids: Sequence[str], tell: Tell) -> dict[str, Record]:
    """Those that are there and can be read; of those that cannot, why is told."""
    found = store.load(ids)
    for id, known in found.items():
        if isinstance(known, UndecodableState | StoreUnavailable):
            tell(id, known.detail)
    return {id: known for id, known in found.items() if isinstance(known, Record)}


def listed(store: Store, owner: str | None, model: str | None, now: float, tell: Tell) -> Iterator[Listed]:
    """Sessions that have not expired by ``now``: an owner's in the order of their ids, or all in none."""
    if owner is not None:
        yield from _owned(store, owner, model, now)
        return
    for ids in batches(store):
        for r in records(store, ids, tell).values():
            if r.expires_at > now and model in (None, r.identity.model):
                yield Listed(r.identity, r.position, r.expires_at)


def _owned(store: Store, owner: str, model: str | None, now: float) -> Iterator[Listed]:
    after = ""
    while (page := store.page(owner, model, after, BATCH, now)) and page[-1].identity.id > after:  # else it is damaged
        yield from page
        after = page[-1].identity.id


def expired(store: Store, now: float) -> Iterator[list[str]]:
    """End all sessions whose time was over by ``now``: the ids, some at a time."""
    while ended := store.expire(now, BATCH):
        yield ended


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check came to. ``unserved``: sessions of models that the repository does not have."""

    sessions: int
    bad: int
    unserved: int


def check(store: Store, row_bytes: Mapping[str, int] | None, tell: Tell, passed: Callable[[int], None]) -> Checked:
    """Read every session; told is what cannot be decoded, or has a row of another size than its model's.

    ``row_bytes``: of each model that is served, by its fingerprint; None: the sizes are not looked at.
    """
    sessions = bad = unserved = 0

    def found_bad(id: str, why: str) -> None:
        nonlocal bad
        bad += 1
        tell(id, why)

    for ids in batches(store):
        before = bad
        whole = records(store, ids, found_bad)
        sessions += len(whole) + bad - before
        if row_bytes is not None:
            for id, r in whole.items():
                expected = row_bytes.get(r.identity.fingerprint)
                unserved += expected is None
                if expected not in (None, len(r.row)):
                    found_bad(id, f"its row has {len(r.row)} bytes where its model's rows have {expected}")
        passed(len(ids))
    return Checked(sessions, bad, unserved)


def first(found: Iterator[Listed], limit: int) -> Iterator[Listed]:
    """At most ``limit`` of them; 0: all."""
    return islice(found, limit or None)
