"""What an operator should know of a Redis server: how it is set up to lose sessions."""

from collections.abc import Mapping

NO_SYNC = (
    "durability is fsync, and the session store does not promise it: it needs appendonly yes and appendfsync always "
    "(and CONFIG GET has to be allowed, to see that)"
)
_SINCE = "a crash of it loses what came since the last one"


def advice(told: Mapping[str, str], replicas: int, *, fsync: bool) -> list[str]:
    """Of what a server tells of itself (INFO, and CONFIG where that is allowed), a sentence for each danger."""
    found = []
    policy = told.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        found.append(
            f"the session store may evict sessions that are in use: maxmemory-policy is {policy}, set it to noeviction"
        )
    if told.get("aof_enabled") != "1":
        found.append(_without_log(told.get("save")))
    elif told.get("appendfsync") == "no":
        found.append("the session store leaves to the system when its log reaches the disk: appendfsync is no")
    connected = int(told.get("connected_slaves", 0))
    if connected < replicas:
        found.append(
            f"the session store has {connected} connected replicas and store_replicas asks for {replicas}: "
            "no step can be acknowledged"
        )
    if fsync and not syncs(told):
        found.append(f"{NO_SYNC}; no step can be acknowledged")
    return found


def syncs(told: Mapping[str, str]) -> bool:
    """Whether every commit reaches the disk before it is answered, as far as the server tells."""
    return told.get("aof_enabled") == "1" and told.get("appendfsync") == "always"


def _without_log(save: str | None) -> str:
    """``save``: the points at which snapshots are made; None where that could not be asked."""
    if save is None:
        return f"the session store keeps no append-only file, and its snapshots cannot be asked for: at best {_SINCE}"
    if save == "":
        return "the session store keeps nothing on disk: a restart of it loses every session; set appendonly to yes"
    return f"the session store keeps snapshots only, no append-only file: {_SINCE}; set appendonly to yes"
