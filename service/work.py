"""What waits for a tick, and the one way in which whoever waits gets an answer."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from service.clock import Clock
from service.errors import DeadlineExceeded

P = TypeVar("P")


class Reply(Protocol):
    """Where the result of a request goes: an ``asyncio.Future``, or whoever writes the answer without one.

    Called on the event loop's thread; ``done`` also once nobody waits any more.
    """

    def done(self) -> bool:
        """Whether it has its result, or its caller has gone."""
        ...

    def set_result(self, result: Any) -> None:  # noqa: ANN401 - what was asked for
        """The result; called once at most, never after ``done``."""
        ...

    def set_exception(self, error: BaseException) -> None:
        """What came instead of a result."""
        ...


class Work(Protocol):
    """Something that waits for a tick. Its methods are called on the event loop's thread and do not block."""

    @property
    def since(self) -> float:
        """When it began to wait, on the clock's monotonic time."""
        ...

    def claim(self) -> int:
        """Its size in steps, asked while ticks are formed, maybe often; 0 when there is nothing to run (any more)."""
        ...

    def start(self) -> None:
        """It is in a tick; nothing can drop it from here on."""
        ...

    def deliver(self, outcome: Any) -> None:  # noqa: ANN401 - whatever the tick came to for it
        """Its own outcome, after the tick has been committed, or the exception that its whole tick ended with."""
        ...


class Call(Generic[P]):
    """The plain kind of work: one item, and a future for the one who waits for its outcome."""

    __slots__ = ("_clock", "_deadline", "_dropped", "future", "item", "since", "size")

    def __init__(
        self, item: P, size: int, clock: Clock, deadline: float, dropped: Callable[[], None] = lambda: None
    ) -> None:
        """``deadline``, on the clock's monotonic time: when the item is dropped if it has not run."""
        self.item = item
        self.size = size
        self.since = clock.monotonic()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._clock = clock
        self._deadline = deadline
        self._dropped = dropped  # told of it, so that drops are counted

    def claim(self) -> int:
        """See ``Work``."""
        late = self._clock.monotonic() > self._deadline
        if not late and not self.future.done():
            return self.size
        self._dropped()
        resolve(self.future, DeadlineExceeded("the request waited too long and was dropped before it ran"))
        return 0

    def start(self) -> None:
        """See ``Work``."""

    def deliver(self, outcome: object) -> None:
        """See ``Work``."""
        resolve(self.future, outcome)


def resolve(reply: Reply, result: object) -> None:
    """The one way a waiting caller gets its result: a reply that is done (its caller has gone) is left alone."""
    if reply.done():
        return
    if isinstance(result, BaseException):
        reply.set_exception(result)
    else:
        reply.set_result(result)
