"""Logging: one line per event on standard error, with a time, a level and where it comes from."""

import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(level: str) -> None:
    """Log from this level on."""
    logging.basicConfig(level=level.upper(), format=_FORMAT, force=True)
    logging.getLogger("uvicorn").setLevel("WARNING")  # we say ourselves when we listen and when we are closed
