"""What the record of a session weighs in memory, part by part."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from msgspec import Struct

from service.state import Record
from service.stores.sqlite import SqliteStore


def weighed(path: Path, ids: Sequence[str]) -> dict[str, float]:
    """Bytes per session of each part of the records as the store loads them; what they share counts once."""
    with closing(SqliteStore(path, fsync=False)) as store:
        records = [known for known in store.load(ids).values() if isinstance(known, Record)]
    seen: set[int] = set()
    parts = {
        name: sum(_weight(getattr(record, name), seen) for record in records) / len(records)
        for name in Record.__struct_fields__
    }
    return {"row": parts.pop("row"), **parts, "itself": sum(map(sys.getsizeof, records)) / len(records)}


def _weight(thing: object, seen: set[int]) -> int:
    """Bytes of an object and of what it alone holds."""
    if thing is None or id(thing) in seen:
        return 0
    seen.add(id(thing))
    inside: Sequence[object] = ()
    if isinstance(thing, Struct):
        inside = [getattr(thing, name) for name in thing.__struct_fields__]
    elif isinstance(thing, Mapping):
        inside = [*thing.keys(), *thing.values()]
    elif isinstance(thing, tuple):
        inside = thing
    elif isinstance(thing, np.ndarray) and thing.base is not None:
        inside = [thing.base]
    return sys.getsizeof(thing) + sum(_weight(one, seen) for one in inside)
