"""Sessions in Redis or Valkey: the store that several replicas share.

Owns the keys and the order in which they are written. One key holds one session, so that in Redis Cluster each lies in
its own slot:

    {prefix}:session:{id}                 the session, or the memory of its end (``redis_value.py``)
    {prefix}:due:{n}                      "ID MODEL/OWNER" by the time to look whether it has expired, ``BUCKETS`` sets
    {prefix}:over:{n}                     ids of ended sessions by the time of their end
    {prefix}:letters:{owner}              the first letters of an owner's ids
    {prefix}:ids:{letter}:{model}/{owner} an owner's ids in their order, of one model, or of all where it is ""

The session is the truth; the sorted sets find it, and may name one that has gone: they are written before a session is
made and after it is gone. The name in ``due`` is the last to go, at the latest when its time has come, and holds all
that the others are found by. As commits change none of them, each is one script over the sessions' keys alone. A
session that is not swept (no server runs) ends by itself, ``SPARE_S`` after its ttl.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

from service.errors import StoreUnavailable, UndecodableState
from service.state import Record
from service.stores import redis_scripts, redis_value
from service.stores.base import LOOK_AGAIN_S, Ended, EndReason, Listed, Store, named_damaged
from service.stores.redis_advice import NO_SYNC, advice, syncs
from service.stores.redis_link import Command, Link, Script

PREFIX = "lstm-serve"
BUCKETS = 16
SPARE_S = 86_400.0
_HEAD = 4096  # bytes of a value in which its head ends, names included
_CREATE, _COMMIT = Script(redis_scripts.CREATE), Script(redis_scripts.COMMIT)
_END, _DROP, _TOUCH = Script(redis_scripts.END), Script(redis_scripts.DROP), Script(redis_scripts.TOUCH)
SCRIPTS = (_CREATE, _COMMIT, _END, _DROP, _TOUCH)


class RedisStore(Store):
    """Sessions on one server, or in a cluster."""

    remote = True

    def __init__(self, link: Link, prefix: str = PREFIX, *, fsync: bool = False, replicas: int = 0) -> None:
        """``fsync`` and ``replicas``: what is looked after, and warned of where the servers do not give it."""
        self._link = link
        self._fsync, self._replicas = fsync, replicas
        self._sessions = f"{prefix}:session:"
        self._due = [f"{prefix}:due:{n}" for n in range(BUCKETS)]
        self._over = [f"{prefix}:over:{n}" for n in range(BUCKETS)]
        self._letters, self._ids = f"{prefix}:letters:", f"{prefix}:ids:"
        self._checks = [f"{prefix}:check:{n}" for n in range(BUCKETS)]  # wherever the parts of a cluster are
        self._synced = False  # whether the servers have told that they keep what ``fsync`` promises

    def create(self, records: Sequence[Record]) -> None:
        self._insist()
        places: list[Command] = []
        for r in records:
            i = r.identity
            places.append(("ZADD", _bucket(self._due, i.id), r.expires_at, _name(i.id, i.model, i.owner)))
            places.append(("SADD", self._letters + i.owner, i.id[:1]))
            places += [("ZADD", key, 0, i.id) for key in self._pages(i.id, i.model, i.owner)]
        self._link.run(places, "create", writes=True)
        values = list(itertools.chain(*((redis_value.encoded(r), _life_ms(r)) for r in records)))
        keys = [self._sessions + r.identity.id for r in records]
        if not all(_whole(self._link.over(_CREATE, keys, values, "create"))):
            raise StoreUnavailable("the session store has a session of this id already")

    def load(self, ids: Sequence[str]) -> Mapping[str, Record | Ended | UndecodableState | StoreUnavailable]:
        values = self._link.values([self._sessions + id for id in ids], "load")
        return {id: _known(id, value) for id, value in zip(ids, values, strict=True) if value is not None}

    def commit(self, records: Sequence[Record]) -> Sequence[bool | StoreUnavailable]:
        self._insist()
        keys = [self._sessions + r.identity.id for r in records]
        told: list[object] = []
        for r in records:
            told += redis_value.mark(r.revision - r.leap), redis_value.encoded(r), _life_ms(r)
        try:
            replies = self._link.over(_COMMIT, keys, told, "commit")
        except StoreUnavailable:
            self._synced = False  # behind it there may be another server
            raise
        return [reply if isinstance(reply, StoreUnavailable) else reply == 1 for reply in replies]

    def end(self, id: str, reason: EndReason, now: float) -> bool:
        (head,) = self._told_end([id], reason, now)
        if head in (b"", redis_value.ENDED):
            return False
        with suppress(StoreUnavailable):  # it has ended: what is left to be tidied up, the sweep will
            self._tidy([(id, *redis_value.whose(head), now)])
        return True

    def expire(self, now: float, limit: int) -> list[str]:
        while due := self._first(self._due, now, limit):
            names, moved = list[tuple[str, str, str]](), list[Command]()
            for key, raw in due:
                name = _parts(raw.decode(errors="replace"))
                if _bucket(self._due, name[0]) == key and _name(*name).encode() == raw:
                    names.append(name)
                else:  # nothing that we wrote
                    moved.append(("ZREM", key, raw))
            damaged = named_damaged(self.load([id for id, *_ in names]))
            moved += [self._put_off(name, now + LOOK_AGAIN_S) for name in names if name[0] in damaged]
            names = [name for name in names if name[0] not in damaged]
            ended, gone = [], list[tuple[str, str, str, float | None]]()
            for name, head in zip(names, self._told_end([id for id, *_ in names], "expired", now), strict=True):
                if (at := redis_value.put_off(head)) is not None:
                    moved.append(self._put_off(name, at))
                    continue
                gone.append((*name, now if head else None))
                if head not in (b"", redis_value.ENDED):
                    ended.append(name[0])
            self._tidy(gone, moved)
            if ended:
                return ended
        return []

    def _put_off(self, name: tuple[str, str, str], at: float) -> Command:
        """What has a session (id, model, owner) looked at again then, if it is still to be looked at."""
        return ("ZADD", _bucket(self._due, name[0]), "XX", at, _name(*name))

    def _told_end(self, ids: Sequence[str], reason: EndReason, now: float) -> list[bytes]:
        """End sessions, those that are to expire only if they have; see the script for what is told of each."""
        shared = (reason, repr(now), redis_value.time(now), int(reason == "expired"))
        return _whole(self._link.over(_END, [self._sessions + id for id in ids], (), "end", shared))

    def _tidy(self, gone: Sequence[tuple[str, str, str, float | None]], further: Sequence[Command] = ()) -> None:
        """Take sessions that have gone (id, model, owner) out of the sets, and note when, where that is remembered.

        Out of ``due`` only when all that is done: else the next sweep does it.
        """
        noted: list[Command] = [("ZADD", _bucket(self._over, id), at, id) for id, _, _, at in gone if at is not None]
        pages = [("ZREM", key, id) for id, model, owner, _ in gone for key in self._pages(id, model, owner)]
        self._link.run([*noted, *pages], "end", writes=True)
        last = [("ZREM", _bucket(self._due, id), _name(id, model, owner)) for id, model, owner, _ in gone]
        self._link.run([*last, *further], "end", writes=True)

    def forget(self, before: float, limit: int) -> int:
        dropped = 0
        while dropped < limit and (old := self._first(self._over, f"({before!r}", limit - dropped)):
            ids = [raw.decode(errors="replace") for _, raw in old]
            marks = [redis_value.ENDED] * len(ids)
            dropped += sum(_whole(self._link.over(_DROP, [self._sessions + id for id in ids], marks, "forget")))
            self._link.run([("ZREM", key, raw) for key, raw in old], "forget", writes=True)
        return dropped

    def remove(self, id: str, revision: int) -> bool:
        key = self._sessions + id
        (head,) = self._link.run([("GETRANGE", key, 0, _HEAD - 1)], "remove")
        if not head.startswith(redis_value.mark(revision)):
            return False
        if _whole(self._link.over(_DROP, [key], [redis_value.mark(revision)], "remove")) != [1]:
            return False
        self._tidy([(id, *redis_value.whose(head), None)])
        return True

    def page(self, owner: str, model: str | None, after: str, limit: int, now: float) -> list[Listed]:
        found: list[Listed] = []
        for ids in self._listed(owner, model, after, limit):
            values = _whole(self._link.values([self._sessions + id for id in ids], "list"))
            for id, value in zip(ids, values, strict=True):
                known = _known(id, value) if value is not None else None
                if isinstance(known, Record) and known.expires_at > now:
                    found.append(Listed(known.identity, known.position, known.expires_at))
            if len(found) >= limit:
                break
        return found[:limit]

    def _listed(self, owner: str, model: str | None, after: str, limit: int) -> Iterator[list[str]]:
        """An owner's ids beyond ``after`` in their order, some at a time."""
        (letters,) = self._link.run([("SMEMBERS", self._letters + owner)], "list")
        for letter in sorted(raw.decode() for raw in letters):
            if letter < after[:1]:
                continue
            key = self._place(letter, model or "", owner)
            start = f"({after}" if after else "-"
            while True:
                (raws,) = self._link.run([("ZRANGE", key, start, "+", "BYLEX", "LIMIT", 0, limit)], "list")
                ids = [raw.decode(errors="replace") for raw in raws]
                if ids:
                    yield ids
                if len(ids) < limit:
                    break
                start = f"({ids[-1]}"

    def walk(self, cursor: str, limit: int) -> tuple[list[str], str]:
        bucket, _, place = (cursor or "0:0").partition(":")
        ((following, found),) = self._link.run([("ZSCAN", self._due[int(bucket)], place, "COUNT", limit)], "list")
        ids = [_parts(raw.decode(errors="replace"))[0] for raw in found[::2]]
        if following != b"0":
            return ids, f"{bucket}:{following.decode()}"
        return ids, f"{int(bucket) + 1}:0" if int(bucket) + 1 < BUCKETS else ""

    def count(self) -> int:
        return sum(self._link.run([("ZCARD", key) for key in self._due], "count"))

    def maintain(self) -> None:
        """Nothing to do: the server does its own housekeeping."""

    def check(self) -> None:
        if self._fsync:
            self._ask()
            if not self._synced:
                raise StoreUnavailable(NO_SYNC)
        told = self._link.over(_TOUCH, self._checks, (), "commit")
        if all(isinstance(reply, Exception) for reply in told):  # a part of a cluster that is left can serve
            _whole(told)

    def _insist(self) -> None:
        """Nothing is committed before it is known that it will last as it was promised to."""
        if self._fsync and not self._synced:
            self.check()

    def _ask(self) -> list[dict[str, str]]:
        """What each server tells of itself, and with it whether commits are synced: that may change at any time."""
        told = self._link.info()
        self._synced = all(map(syncs, told))
        return told

    def warnings(self) -> list[str]:
        of_each = [advice(told, self._replicas, fsync=self._fsync) for told in self._ask()]
        return list(dict.fromkeys(itertools.chain(*of_each)))

    def close(self) -> None:
        self._link.close()

    def _pages(self, id: str, model: str, owner: str) -> tuple[str, str]:
        """The two sorted sets that list a session."""
        return self._place(id[:1], "", owner), self._place(id[:1], model, owner)

    def _place(self, letter: str, model: str, owner: str) -> str:
        return f"{self._ids}{letter}:{model}/{owner}"  # a model is a folder: there is no slash in its name

    def _first(self, keys: Sequence[str], until: float | str, limit: int) -> list[tuple[str, bytes]]:
        """Members up to a time, out of all buckets, each with its bucket, at most ``limit``."""
        found = self._link.run([("ZRANGEBYSCORE", key, "-inf", until, "LIMIT", 0, limit) for key in keys], "expire")
        members = ((key, raw) for key, raws in zip(keys, found, strict=True) for raw in raws)
        return list(itertools.islice(members, limit))


def _whole(replies: list[Any]) -> list[Any]:
    """Replies, where none of them is to be an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _known(id: str, value: bytes | StoreUnavailable) -> Record | Ended | UndecodableState | StoreUnavailable:
    return value if isinstance(value, StoreUnavailable) else redis_value.decoded(id, value)


def _name(id: str, model: str, owner: str) -> str:
    """A session in ``due``."""
    return f"{id} {model}/{owner}"


def _parts(name: str) -> tuple[str, str, str]:
    """Id, model and owner: the inverse of ``_name``."""
    id, _, whose = name.partition(" ")
    model, _, owner = whose.partition("/")
    return id, model, owner


def _bucket(keys: Sequence[str], id: str) -> str:
    return keys[crc32(id.encode()) % len(keys)]


def _life_ms(r: Record) -> int:
    """How long the server keeps a session by itself: by its own clock, from this commit on."""
    return int((max(0.0, r.identity.ttl_s) + SPARE_S) * 1000)
