"""A Redis Cluster, as what a store asks: see ``redis_link.Link``. Every key is asked for at the node that has it.

redis-py has a client for clusters. It sends a command again whose answer was lost, below whoever sent it: a commit that
was applied would be refused when it comes again, and its steps would then be applied a second time by their session.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, NoScriptError

from service.errors import StoreUnavailable
from service.store_url import StoreUrl
from service.stores.redis_link import PAUSE_S, Command, Script, failed
from service.stores.redis_node import Node, pool_at

_ROUNDS = 4  # a command that is sent on and on has met a cluster that moves its keys just now
Address = tuple[str, int]
Asked = tuple[Address | None, list[Command]]


class Cluster:
    """One round trip for every call, to all nodes at once, where no key has moved.

    Mutable state, whose parts are replaced whole: ``_homes`` (of each slot the master, None where there is none),
    ``_nodes`` (all that were ever spoken to), ``_known_until`` (when to ask again who has which slot; one thread does).
    """

    def __init__(self, url: StoreUrl, scripts: Sequence[Script]) -> None:
        self._url = url
        self._scripts = scripts
        self._homes: list[Address | None] = []
        self._nodes: dict[Address, Node] = {}
        self._known_until = 0.0
        self._looking = threading.Lock()

    def run(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        replies = self._each(commands, doing, writes=writes)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def values(self, keys: Sequence[str], doing: str) -> list[Any]:
        return self._each([("GET", key) for key in keys], doing)

    def over(
        self, script: Script, keys: Sequence[str], each: Sequence[Any], doing: str, shared: Sequence[Any] = ()
    ) -> list[Any]:
        per = len(each) // max(1, len(keys))
        calls = [script.call([key], (*shared, *each[n * per : (n + 1) * per])) for n, key in enumerate(keys)]
        replies = self._each(calls, doing, writes=True)
        return [reply if isinstance(reply, Exception) else reply[0] for reply in replies]

    def info(self) -> list[dict[str, str]]:
        self._look("tell of itself")
        return [self._node(address).info() for address in dict.fromkeys(filter(None, self._homes))]

    def close(self) -> None:
        for node in list(self._nodes.values()):
            node.close()

    def _each(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        """A reply or StoreUnavailable for each command: where one node is down, the keys of the others are served."""
        self._look(doing)
        asked = {n: (self._homes[_slot(command)], [command]) for n, command in enumerate(commands)}
        replies: list[Any] = [None] * len(commands)
        for _ in range(_ROUNDS):
            told = self._round(asked, doing, writes=writes)
            replies = [told.get(n, reply) for n, reply in enumerate(replies)]
            asked = {n: again for n, reply in told.items() if (again := self._sent_on(asked[n], reply))}
            if not asked:
                break
            for address in {asked[n][0] for n, reply in told.items() if isinstance(reply, NoScriptError)}:
                self._teach(address, doing)
        refused = {type(r): r for r in replies if isinstance(r, Exception) and not isinstance(r, StoreUnavailable)}
        named = {kind: failed(doing, error) for kind, error in refused.items()}
        return [named.get(type(reply), reply) for reply in replies]

    def _round(self, asked: "Mapping[int, Asked]", doing: str, *, writes: bool) -> dict[int, Any]:
        """Send what is asked of each address to all of them, then read: the last reply to each, or its error."""
        told: dict[int, Any] = {}
        sent = []
        for address in dict.fromkeys(address for address, _ in asked.values()):
            mine = {n: commands for n, (home, commands) in asked.items() if home == address}
            if address is None:
                told |= dict.fromkeys(
                    mine, StoreUnavailable(f"the session store cannot {doing} now: a part is missing")
                )
                continue
            node = self._node(address)
            try:
                commands = [command for commands in mine.values() for command in commands]
                sent.append((node, node.send(commands, doing, writes=writes), mine))
            except StoreUnavailable as error:
                told |= dict.fromkeys(mine, error)
        for node, connection, mine in sent:
            try:
                replies = iter(node.read(connection, sum(map(len, mine.values())), doing, writes=writes))
                told |= {n: [next(replies) for _ in commands][-1] for n, commands in mine.items()}
            except StoreUnavailable as error:
                told |= dict.fromkeys(mine, error)
        if any(isinstance(reply, StoreUnavailable) for reply in told.values()):
            self._doubt()  # there may be another master
        return told

    def _sent_on(self, asked: "Asked", reply: object) -> "Asked | None":
        """Where to ask again for what was not done there; None where it was, or cannot be."""
        address, commands = asked
        if address is None:
            return None
        if isinstance(reply, NoScriptError):
            return asked
        if isinstance(reply, MovedError):
            self._doubt()
            return (reply.host or address[0], reply.port), commands[-1:]
        if isinstance(reply, AskError):
            return (reply.host or address[0], reply.port), [("ASKING",), commands[-1]]
        return None

    def _teach(self, address: Address | None, doing: str) -> None:
        """Load the scripts at a node; what that fails with is met again by who needs them."""
        if address is not None:
            with suppress(StoreUnavailable):
                self._node(address).call([("SCRIPT", "LOAD", script.text) for script in self._scripts], doing)

    def _doubt(self) -> None:
        """Look again who has which slot, soon: what is asked meanwhile is sent on."""
        self._known_until = min(self._known_until, time.monotonic() + PAUSE_S)

    def _look(self, doing: str) -> None:
        """Find out who has which slot, where that is not known or may have changed."""
        if self._homes and time.monotonic() < self._known_until:
            return
        with self._looking:
            if self._homes and time.monotonic() < self._known_until:
                return
            self._known_until = time.monotonic() + PAUSE_S  # who comes meanwhile goes by what was known before
            error = StoreUnavailable(f"the session store cannot {doing} now: no node of the cluster is known")
            for address in dict.fromkeys((*filter(None, self._homes), *self._url.nodes)):
                try:
                    (reply,) = self._node(address).call([("CLUSTER", "SLOTS")], "tell of its slots")
                except StoreUnavailable as unavailable:
                    error = unavailable
                    continue
                if not isinstance(reply, Exception):
                    self._homes = homes = _homes(reply, address)
                    if all(homes):
                        self._known_until = float("inf")
                    return
                error = failed("tell of its slots", reply)
            if not self._homes:
                raise error

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes.setdefault(address, Node(pool_at(self._url, *address)))
        return node


def _slot(command: Command) -> int:
    """The slot of a command's one key."""
    return key_slot(str(command[3] if command[0] == "EVALSHA" else command[1]).encode())


def _homes(told: Sequence[Sequence[Any]], asked: Address) -> list[Address | None]:
    """Of each slot the master's address. A node that does not know its own host is where it was asked."""
    homes: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, (host, port, *_), *_ in told:
        homes[first : last + 1] = [((host or b"").decode() or asked[0], int(port))] * (last - first + 1)
    return homes
