"""Checkpoints of SQLite: what stands in the write-ahead log is copied back into the file, and the log begins anew.

Owns when and how, on a connection of its own. A log that never begins anew grows for ever: that takes a moment in which
all of it is copied and nobody writes, and under load there is none by itself. SQLite's own checkpoint makes one inside
a commit, which then takes tens of milliseconds.
"""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from service.errors import StoreUnavailable
from service.stores.transactions import errors_mapped

_PAGE_BYTES = 4_096
_SOME_BYTES = 4 * 2**20  # in the log: worth a checkpoint every now and then
_MOST_BYTES = 32 * 2**20  # at once: it is asked for by the commits themselves


class Checkpoints:
    """Those of one database; ``write_lock`` is held by whoever writes to it."""

    def __init__(self, connection: sqlite3.Connection, write_lock: threading.Lock) -> None:
        self._db = connection
        self._write_lock = write_lock
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._grown = 0  # bytes of the log since the last one, about: changed under the lock of writers
        self._asked = False

    def written(self, pages: int, more_bytes: int = 0) -> None:
        """About so much is going into the log; called by whoever holds the lock of writers."""
        self._grown += pages * _PAGE_BYTES + more_bytes
        if self._grown >= _MOST_BYTES and not self._asked:
            self._asked = True
            self._thread.submit(self._run)

    def now_and_then(self) -> None:
        """Make one if it is worth it; StoreUnavailable where it fails."""
        if self._grown >= _SOME_BYTES:
            self._make()

    def close(self) -> None:
        """Wait for the one that runs."""
        self._thread.shutdown(wait=True)
        self._db.close()

    def _run(self) -> None:
        with suppress(StoreUnavailable):  # it was logged, and the next one is not far
            self._make()
        self._asked = False

    def _make(self) -> None:
        with errors_mapped("checkpoint"), self._lock:
            self._copy()  # while others write
            with self._write_lock:  # and the little that they wrote meanwhile: the log begins anew with the next commit
                self._grown = 0
                self._copy()

    def _copy(self) -> None:
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
