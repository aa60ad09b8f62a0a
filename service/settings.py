"""Every setting of the service, each with its sentence: the one source of the command line, the environment
(``LSTM_SERVE_...``) and the README's table."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from service import store_url
from service.errors import SettingsError

_HOUR_S, _TEN_YEARS_S = 3600.0, 10 * 365 * 86_400.0  # within ten years every time stays a date that can be shown
PREFIX = "LSTM_SERVE_"


class Settings(BaseSettings):
    """What an operator may choose; a wrong value or combination stops the start."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    model_repository: Path = Field(Path("model_repository"), description="folder of NAME/VERSION/model.onnx")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    http_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="processes that speak HTTP in front of the one that has the engine; 0: one process does all",
    )
    store: str = Field(
        "sqlite:data/sessions.db",
        description="where sessions are kept: sqlite:PATH, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,.../NAME "
        "or redis+cluster://HOST:PORT,... (rediss: with TLS; valkey: the same)",
        repr=False,
    )
    store_replicas: int = Field(
        0,
        ge=0,
        le=16,
        description="replicas of Redis that have to acknowledge a step before we do; not with a cluster",
    )
    durability: Literal["memory", "commit", "fsync"] = Field(
        "commit",
        description="what an acknowledged step survives: memory = nothing (the store is not used), commit = the death "
        "of the process, fsync = a power cut (with Redis: as its own log and replicas have it; fsync insists on "
        "appendfsync always)",
    )
    provider: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="execution provider of ONNX Runtime; cuda refuses to start where CUDA cannot be loaded"
    )
    tune: bool = Field(
        True,
        description="measure each model for a moment at the start, and choose threads and max_batch, where they are "
        "not given, and padding by it",
    )
    resident_mb: int = Field(
        256, ge=0, le=2**20, description="megabytes of GPU memory per model in which rows of sessions stay; 0: none do"
    )
    threads: int = Field(1, ge=1, le=256, description="threads of ONNX Runtime for one tick")
    max_batch: int = Field(128, ge=1, le=4096, description="sessions in one tick at most")
    max_cells: int = Field(
        2048,
        ge=1,
        le=2**24,
        description="cells (sessions x steps) in one tick at most, so that long chunks do not hold up single steps",
    )
    inline_ms: float = Field(
        10.0,
        ge=0,
        le=1000,
        description="what takes less than this, a tick or with overlap its commit, runs on the event loop itself, "
        "which saves CPU; 0: nothing does, as always with Redis",
    )
    overlap: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether one tick is computed in a thread while the one before is committed and answered; auto = "
        "where at least 16 sessions take 2 ms or more to compute, with fewer threads than cores, and on a GPU as with "
        "on: also where a tick is too long for inline_ms",
    )
    segment_steps: int = Field(
        64,
        ge=1,
        le=4096,
        description="steps of one row in one tick at most; longer chunks are cut, shorter ones folded",
    )
    lone_segment_ms: float = Field(
        4.0,
        ge=0,
        le=1000,
        description="while nobody else is served, segments of a long chunk grow to about this long; 0: they do not",
    )
    allow_inexact: bool = Field(
        False, description="cut and fold chunks also for a model whose answers are not bit-exact"
    )
    max_queue: int = Field(4096, ge=1, description="sessions waiting for a tick at most; beyond it requests get 503")
    max_session_queue: int = Field(64, ge=1, description="requests of one session waiting at most; beyond it 503")
    queue_timeout_s: float = Field(
        30.0, gt=0, le=_HOUR_S, description="seconds a request may wait before it is dropped with 503"
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="bytes of a request body at most")
    max_steps: int = Field(
        16384, ge=1, description="steps of one request at most, generated ones and all sequences of a predict counted"
    )
    max_gates: int = Field(
        256,
        ge=1,
        le=4096,
        description="last steps whose gates a session can show at most; it stores the inputs of about twice as many",
    )
    max_sequences: int = Field(256, ge=1, description="sequences in one predict request at most")
    max_live: int = Field(100_000, ge=1, description="sessions kept in memory at most; the others rest in the store")
    default_ttl_s: float = Field(
        86_400.0, gt=0, le=_TEN_YEARS_S, description="seconds without a step after which a session expires"
    )
    max_ttl_s: float = Field(
        30 * 86_400.0, gt=0, le=_TEN_YEARS_S, description="largest ttl that a client may ask for, in seconds"
    )
    tombstone_s: float = Field(
        86_400.0, ge=0, le=_TEN_YEARS_S, description="seconds for which an ended session answers 410, not 404"
    )
    sweep_interval_s: float = Field(
        5.0, gt=0, le=_HOUR_S, description="seconds between two searches for expired sessions"
    )
    keep_answer_bytes: int = Field(
        65_536, ge=0, description="bytes of answers kept per session for repeats of requests; larger ones are not kept"
    )
    drain_s: float = Field(
        20.0, ge=0, le=_HOUR_S, description="seconds that accepted requests get to finish at a shutdown"
    )
    lame_duck_s: float = Field(
        0.0,
        ge=0,
        le=_HOUR_S,
        description="seconds that a server that is told to end serves on, not ready any more, until balancers know",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.default_ttl_s > self.max_ttl_s:
            raise ValueError(f"default_ttl_s ({self.default_ttl_s:g}) is larger than max_ttl_s ({self.max_ttl_s:g})")
        place = store_url.parse(self.store)
        if self.store_replicas and not place.takes_replicas:
            raise ValueError(f"store_replicas ({self.store_replicas}) is for one Redis, not for {place.kind}")
        return self


def load_settings(**chosen: object) -> Settings:
    """Settings from the environment, overridden by ``chosen``; SettingsError says which one is wrong and why."""
    _refuse_misspelled(os.environ)
    try:
        return Settings(**chosen)  # type: ignore[arg-type]  # pydantic validates them: that is the point
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        told = _told(first, _as_written(name, chosen)) if name else first["msg"].removeprefix("Value error, ")
        raise SettingsError(told, field=name or None) from error


_MUST = {  # by pydantic's type of an error: what the value has to be
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "literal_error": "{expected}",
}


def _told(error: ErrorDetails, written: str) -> str:
    """What is wrong with a value, in the words of whoever wrote it."""
    if error["type"] not in _MUST:
        return f"{written}: {error['msg']} (got {error['input']!r})"
    return f"{written} is {error['input']!r}, and has to be {_MUST[error['type']].format(**error.get('ctx', {}))}"


def _as_written(name: str, chosen: Mapping[str, object]) -> str:
    """A setting as an option, or as the variable of the environment that it came from."""
    return f"--{name.replace('_', '-')}" if name in chosen else PREFIX + name.upper()


def _refuse_misspelled(environment: Mapping[str, str]) -> None:
    """A variable with our prefix that is no setting would be ignored in silence."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            raise SettingsError(f"there is no setting {name}" + (f"; did you mean {near[0]}?" if near else ""))
