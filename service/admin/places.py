"""Stores as they are named on the command line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import store_url
from service.errors import SettingsError
from service.settings import load_settings
from service.stores.base import Store
from service.stores.opening import open_store


@contextmanager
def opened(url: str | None, *, destination: bool = False, replicas: int = 0) -> Iterator[Store]:
    """The store at ``url``, or at that of the settings, open for the time being.

    ``destination``: sessions are to move there, so a file is made where there is none, and what is committed to it is
    on the disk; ``replicas``: of Redis, how many acknowledge a commit.

    Raises:
        SettingsError: it names no store, or a file that is not there.
        StoreUnavailable: it cannot be opened.
    """
    try:
        place = store_url.parse(url or load_settings().store)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if replicas and not place.takes_replicas:
        raise SettingsError(f"--replicas ({replicas}) is for one Redis, not for {place.kind}")
    try:
        there = place.kind != "sqlite" or destination or Path(place.path).exists()
    except OSError as error:
        raise SettingsError(f"{place.path} cannot be looked at: {error.strerror}") from None
    if not there:
        raise SettingsError(f"there is no session database at {place.path}")
    logging.getLogger("service").addHandler(logging.NullHandler())  # the error that we raise says what is to be said
    store = open_store(place, "fsync" if destination and place.kind == "sqlite" else "commit", replicas)
    try:
        yield store
    finally:
        store.close()
