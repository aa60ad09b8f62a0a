"""Transactions of SQLite, and where its errors end."""

import logging
import sqlite3
import threading
from collections.abc import Callable

from service.errors import StoreUnavailable

log = logging.getLogger(__name__)


class errors_mapped:  # noqa: N801 - reads as the statement that it is: with errors_mapped("load")
    """sqlite3's errors end here; the client learns the kind, the log the whole."""

    __slots__ = ("_doing",)

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            _raise_mapped(self._doing, error)


def _raise_mapped(doing: str, error: BaseException) -> None:
    """Raise StoreUnavailable in the place of an error of SQLite or the system; leave others to their way."""
    if isinstance(error, (sqlite3.Error, OSError)):
        kind = getattr(error, "sqlite_errorname", None) or type(error).__name__
        log.error("the session database cannot %s: %s: %s", doing, kind, error)
        raise StoreUnavailable(f"the session database cannot {doing} now ({kind})") from error


class Transaction:
    """A write transaction: committed at the end, if ``check`` raises nothing, rolled back on any error.

    A class, as a generator's context costs a lone step several hundredths of its time.
    """

    __slots__ = ("_check", "_db", "_lock")

    def __init__(self, db: sqlite3.Connection, lock: threading.Lock, check: Callable[[], None]) -> None:
        self._db, self._lock, self._check = db, lock, check

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except BaseException as error:
            self._lock.release()
            _raise_mapped("commit", error)
            raise
        return self._db

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._check()  # two calls of the system: what is acknowledged is there after a restart
                self._db.execute("COMMIT")
        except BaseException as late:
            self._roll_back()
            _raise_mapped("commit", late)
            raise
        else:
            if error is not None:
                self._roll_back()
                _raise_mapped("commit", error)
        finally:
            self._lock.release()

    def _roll_back(self) -> None:
        with errors_mapped("commit"):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
