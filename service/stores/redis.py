"""Sessions in Redis or Valkey: the store that several replicas share.

Owns the keys and the order in which they are written. One key holds one session, so that in Redis Cluster each lies in
its own slot:

    {prefix}:session:{id}                 the session, or the memory of its end (``redis_value.py``)
    {prefix}:due:{n}                      ids by the time to look whether they have expired, in ``BUCKETS`` sorted sets
    {prefix}:over:{n}                     ids of ended sessions by the time of their end
    {prefix}:letters:{owner}              the first letters of an owner's ids
    {prefix}:ids:{letter}:{model}/{owner} an owner's ids in their order, of one model, or of all where it is ""

The session is the truth; the sorted sets find it, and may name one that has gone: they are written before a session is
made and after it is gone, and whoever meets such a name takes it out. As every commit changes none of them, it is one
script over the sessions' keys alone. A session that is not swept (no server runs) ends by itself, ``SPARE_S`` after its
ttl.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

from service.errors import StoreUnavailable, UndecodableState
from service.state import Record
from service.stores import redis_scripts, redis_value
from service.stores.base import Ended, EndReason, Listed, Store
from service.stores.redis_advice import advice, syncs
from service.stores.redis_link import Command, Link, Script

PREFIX = "lstm-serve"
BUCKETS = 16
SPARE_S = 86_400.0
_HEAD = 4096  # bytes of a value in which its head ends, names included
_CREATE, _COMMIT = Script(redis_scripts.CREATE), Script(redis_scripts.COMMIT)
_END, _DROP = Script(redis_scripts.END), Script(redis_scripts.DROP)
SCRIPTS = (_CREATE, _COMMIT, _END, _DROP)


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
        self._check = f"{prefix}:check"

    def create(self, records: Sequence[Record]) -> None:
        places: list[Command] = []
        for r in records:
            i = r.identity
            places.append(("ZADD", _bucket(self._due, i.id), r.expires_at, i.id))
            places.append(("SADD", self._letters + i.owner, i.id[:1]))
            places += [("ZADD", key, 0, i.id) for key in self._pages(i.owner, i.model, i.id)]
        self._link.run(places, "create", writes=True)
        values = list(itertools.chain(*((redis_value.encoded(r), _life_ms(r)) for r in records)))
        keys = [self._sessions + r.identity.id for r in records]
        if not all(self._link.over(_CREATE, keys, values, "create", ())):
            raise StoreUnavailable("the session store has a session of this id already")

    def load(self, ids: Sequence[str]) -> Mapping[str, Record | Ended | UndecodableState]:
        values = self._link.values([self._sessions + id for id in ids], "load")
        return {id: redis_value.decoded(id, value) for id, value in zip(ids, values, strict=True) if value is not None}

    def commit(self, records: Sequence[Record]) -> list[bool]:
        keys = [self._sessions + r.identity.id for r in records]
        told: list[object] = []
        for r in records:
            told += redis_value.mark(r.revision - 1), redis_value.encoded(r), _life_ms(r)
        return [flag == 1 for flag in self._link.over(_COMMIT, keys, told, "commit", ())]

    def end(self, id: str, reason: EndReason, now: float) -> bool:
        return bool(self._ended([id], reason, now))

    def expire(self, now: float, limit: int) -> list[str]:
        while due := self._first(self._due, now, limit):
            if ended := self._ended(due, "expired", now):
                return ended
        return []

    def _ended(self, ids: Sequence[str], reason: EndReason, now: float) -> list[str]:
        """End sessions, those that are to expire only if they have; take all out of the indices that are not there."""
        last = (reason, repr(now), redis_value.time(now), int(reason == "expired"))
        told = self._link.over(_END, [self._sessions + id for id in ids], (), "end", last)
        heads = dict(zip(ids, told, strict=True))
        off = {id: at for id, head in heads.items() if (at := redis_value.put_off(head)) is not None}
        ended = [id for id, head in heads.items() if head and id not in off]
        tidied: list[Command] = [("ZADD", _bucket(self._due, id), "XX", at, id) for id, at in off.items()]
        for id, head in heads.items():
            if id not in off:
                tidied.append(("ZREM", _bucket(self._due, id), id))
        for id in ended:
            tidied.append(("ZADD", _bucket(self._over, id), now, id))
            tidied += [("ZREM", key, id) for key in self._pages(*redis_value.whose(heads[id]), id)]
        self._link.run(tidied, "end", writes=True)
        return ended

    def forget(self, before: float, limit: int) -> int:
        dropped = 0
        while dropped < limit and (old := self._first(self._over, f"({before!r}", limit - dropped)):
            marks = [redis_value.ENDED] * len(old)
            dropped += sum(self._link.over(_DROP, [self._sessions + id for id in old], marks, "forget", ()))
            self._link.run([("ZREM", _bucket(self._over, id), id) for id in old], "forget", writes=True)
        return dropped

    def remove(self, id: str, revision: int) -> bool:
        key = self._sessions + id
        (head,) = self._link.run([("GETRANGE", key, 0, _HEAD - 1)], "remove")
        if not head.startswith(redis_value.mark(revision)):
            return False
        places: list[Command] = [("ZREM", k, id) for k in self._pages(*redis_value.whose(head), id)]
        places.append(("ZREM", _bucket(self._due, id), id))
        if self._link.over(_DROP, [key], [redis_value.mark(revision)], "remove", ()) != [1]:
            return False
        self._link.run(places, "remove", writes=True)
        return True

    def page(self, owner: str, model: str | None, after: str, limit: int, now: float) -> list[Listed]:
        found: list[Listed] = []
        for ids in self._listed(owner, model, after, limit):
            values = self._link.values([self._sessions + id for id in ids], "list")
            for id, value in zip(ids, values, strict=True):
                known = redis_value.decoded(id, value) if value is not None else None
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
                ids = [raw.decode() for raw in raws]
                if ids:
                    yield ids
                if len(ids) < limit:
                    break
                start = f"({ids[-1]}"

    def walk(self, cursor: str, limit: int) -> tuple[list[str], str]:
        bucket, _, place = (cursor or "0:0").partition(":")
        ((following, found),) = self._link.run([("ZSCAN", self._due[int(bucket)], place, "COUNT", limit)], "list")
        ids = [raw.decode() for raw in found[::2]]
        if following != b"0":
            return ids, f"{bucket}:{following.decode()}"
        return ids, f"{int(bucket) + 1}:0" if int(bucket) + 1 < BUCKETS else ""

    def count(self) -> int:
        return sum(self._link.run([("ZCARD", key) for key in self._due], "count"))

    def maintain(self) -> None:
        """Nothing to do: the server does its own housekeeping."""

    def check(self) -> None:
        if self._fsync and not all(syncs(told) for told in self._link.info()):
            raise StoreUnavailable(
                "durability is fsync, and the session store does not promise it: it needs appendonly yes and "
                "appendfsync always (and CONFIG GET has to be allowed, to see that)"
            )
        self._link.run([("SET", self._check, 1)], "commit")

    def warnings(self) -> list[str]:
        return list(dict.fromkeys(s for told in self._link.info() for s in advice(told, self._replicas)))

    def close(self) -> None:
        self._link.close()

    def _pages(self, owner: str, model: str, id: str) -> tuple[str, str]:
        """The two sorted sets that list a session."""
        return self._place(id[:1], "", owner), self._place(id[:1], model, owner)

    def _place(self, letter: str, model: str, owner: str) -> str:
        return f"{self._ids}{letter}:{model}/{owner}"  # a model is a folder: there is no slash in its name

    def _first(self, keys: Sequence[str], until: float | str, limit: int) -> list[str]:
        """Ids up to a time, out of all buckets, at most ``limit``."""
        found = self._link.run([("ZRANGEBYSCORE", key, "-inf", until, "LIMIT", 0, limit) for key in keys], "expire")
        return [raw.decode() for raw in itertools.islice(itertools.chain(*found), limit)]


def _bucket(keys: Sequence[str], id: str) -> str:
    return keys[crc32(id.encode()) % len(keys)]


def _life_ms(r: Record) -> int:
    """How long the server keeps a session by itself: by its own clock, from this commit on."""
    return int((max(0.0, r.identity.ttl_s) + SPARE_S) * 1000)
