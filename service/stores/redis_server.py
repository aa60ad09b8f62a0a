"""One Redis or Valkey, or the master that sentinels name, as what a store asks: see ``redis_link.Link``."""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from service.errors import OutcomeUnknown, StoreUnavailable
from service.stores.redis_link import ANSWER_S, Command, Script, failed
from service.stores.redis_node import Node

WAIT_MS = int(ANSWER_S * 500)  # how long replicas are waited for


class Server:
    """One round trip for every call. ``replicas``: so many have to have what was written, and what is read."""

    def __init__(self, node: Node, scripts: Sequence[Script], replicas: int = 0) -> None:
        self._node = node
        self._scripts = {script.sha: script for script in scripts}
        self._replicas = replicas

    def run(self, commands: Sequence[Command], doing: str, *, writes: bool = False) -> list[Any]:
        replies = self._node.call(commands, doing, writes=writes)
        if any(isinstance(reply, NoScriptError) for reply in replies):  # after a restart or a failover: it has not run
            self._node.call([("SCRIPT", "LOAD", script.text) for script in self._scripts.values()], doing)
            replies = self._node.call(commands, doing, writes=writes)
        for reply in replies:
            if isinstance(reply, Exception):
                raise failed(doing, reply) from reply
        return replies

    def values(self, keys: Sequence[str], doing: str) -> list[Any]:
        if not keys:
            return []
        if not self._replicas:
            return list(self.run([("MGET", *keys)], doing)[0])
        # What is read may be told, so the replicas have to have it as well. They are asked about this connection's last
        # write, and as they take all writes in one order, that one stands for those of others before it.
        touch = ("SET", f"{keys[0]}:seen", 1, "PX", 1)
        values, _, kept = self.run([("MGET", *keys), touch, self._wait()], doing)
        if kept < self._replicas:
            raise StoreUnavailable(f"the session store cannot {doing} now: {self._too_few(kept)}")
        return list(values)

    def over(
        self, script: Script, keys: Sequence[str], each: Sequence[Any], doing: str, shared: Sequence[Any] = ()
    ) -> list[Any]:
        call = script.call(keys, (*shared, *each))
        if not self._replicas:
            return list(self.run([call], doing, writes=True)[0])
        told, kept = self.run([call, self._wait()], doing, writes=True)
        if kept < self._replicas:
            raise OutcomeUnknown(
                f"{self._too_few(kept)}: what was asked may be lost at a failover, or stay; a repeat that names its "
                "position is safe"
            )
        return list(told)

    def info(self) -> list[dict[str, str]]:
        return [self._node.info()]

    def close(self) -> None:
        self._node.close()

    def _wait(self) -> Command:
        return ("WAIT", self._replicas, WAIT_MS)

    def _too_few(self, kept: int) -> str:
        return f"{kept} of the {self._replicas} replicas that store_replicas asks for acknowledged in time"
