"""Logging: one line per event on standard error, with a time, a level and where it comes from."""

import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(level: str) -> None:
    """Log from this level on."""
    logging.basicConfig(level=level.upper(), format=_FORMAT, force=True)
    logging.getLogger("uvicorn.error").addFilter(_worth_telling)


def _worth_telling(record: logging.LogRecord) -> bool:
    """Of uvicorn's own lines: trouble, and what a shutdown waits for. That we listen or are closed we say ourselves."""
    return record.levelno >= logging.WARNING or str(record.msg).startswith(("Shutting", "Waiting for connections"))
