"""The composition root: the one place that knows all concrete classes. Build, warm up, drain, close."""

import gc
import logging
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service import store_url
from service.api import generation, handshake, health, models, sessions, steps, streams
from service.api.asgi import ClientDisconnected
from service.api.edge import Edge
from service.api.problems import invalid, problem, reason
from service.api.schemas import Problem
from service.clock import Clock, SystemClock
from service.engine import ort
from service.engine.repository import load_repository
from service.errors import InvalidInput, MalformedBody, ServiceError, UnknownPath, WrongMethod
from service.metrics import Metrics
from service.models import Model, Models
from service.sessions.sessions import Sessions
from service.settings import Settings
from service.stores.base import Store
from service.stores.opening import open_store

log = logging.getLogger(__name__)

VERSION = version("lstm-serve")
_ANY_ERROR = 500
_CONTAINERS = 50_000  # that are made and not freed before cycles are looked for
_PROBLEM: dict[str, Any] = {
    "description": "a problem, with a stable type and the field that was wrong",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
}
_NAMED = {400: MalformedBody, 404: UnknownPath, 405: WrongMethod}


def build(settings: Settings, store: Store | None = None, clock: Clock | None = None) -> Edge:
    """The whole service as an ASGI app; tests pass their own store and clock through the same door.

    Raises:
        ArtifactError: nothing in the model repository can be served.
        SettingsError: the execution provider cannot be had.
        StoreUnavailable: the store cannot be opened.
    """
    clock = clock or SystemClock()
    metrics = Metrics()
    loaded, problems = load_repository(settings.model_repository, settings)
    store = store or open_store(store_url.parse(settings.store), settings.durability, settings.store_replicas)
    served = Models([Model(m, settings, store, clock, metrics) for m in loaded])
    _tell_versions(metrics, served)
    brain = Sessions(served, store, settings, clock, metrics)
    readiness = health.Readiness(brain)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        brain.start()
        # What was made up to here lives as long as the process: without this, every full garbage collection would walk
        # through all of it, and everybody wait for tens of milliseconds.
        gc.collect()
        gc.freeze()
        # A tick holds some containers for each of up to thousands of requests, none of them a cycle: to look for cycles
        # every few hundred containers, as Python does by itself, takes a tenth of a step.
        usual = gc.get_threshold()
        gc.set_threshold(_CONTAINERS)
        yield
        gc.set_threshold(*usual)
        gc.unfreeze()
        await brain.close()

    app = FastAPI(
        title="lstm-serve",
        version=VERSION,
        description="Recurrent models in conversation: durable, exactly-once sessions that carry the state.",
        lifespan=lifespan,
        responses=dict.fromkeys(("4XX", "5XX"), _PROBLEM),
    )
    endpoint = steps.StepsEndpoint(brain, steps.StepsCounts(metrics), settings.max_body_bytes, settings.max_steps)
    for router in (
        steps.router(endpoint),
        streams.router(),
        sessions.router(brain),
        generation.router(brain, settings.max_steps),
        models.router(brain, settings.max_steps, settings.max_sequences),
        health.router(brain, readiness, metrics, problems),
    ):
        app.include_router(router)
    _answer_errors(app, metrics)
    limits = streams.Limits(settings.max_body_bytes, settings.max_steps, settings.max_session_queue)
    opened = streams.Streams(brain, steps.StepsCounts(metrics, handshake.PATH), limits)
    return Edge(app, endpoint, opened, metrics, settings.max_body_bytes, readiness.retire)


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Every error leaves as a problem document."""

    async def answered(_: Request, error: Exception) -> Response:
        if ClientDisconnected in (type(error), type(error.__cause__)):  # the cause, where an answer had begun
            raise error  # nobody would read an answer; the edge knows
        told = dict(getattr(error, "headers", None) or {})  # Allow, where the method is wrong
        error = _ours(error)
        metrics.rejected.labels(reason(error)).inc()
        status, body, headers = problem(error)
        return Response(body, status, told | {k.decode(): v.decode() for k, v in headers})

    for kind in (ServiceError, RequestValidationError, HTTPException, ClientDisconnected, Exception):
        app.add_exception_handler(kind, answered)


def _ours(error: Exception) -> Exception:
    """What FastAPI and Starlette raise, in our terms."""
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException) and error.status_code < _ANY_ERROR:
        named = _NAMED.get(error.status_code, InvalidInput)
        return named(str(error.detail))
    return error


def _tell_versions(metrics: Metrics, served: Models) -> None:
    versions = {"version": VERSION, "onnxruntime": ort.VERSION, "python": platform.python_version()}
    metrics.build.info(versions)
    for m in served.all:
        e = m.engine
        how = (e.provider, e.min_rows, e.bit_exact, m.choice.threads, m.choice.max_batch)
        metrics.models.labels(m.name, m.version, m.fingerprint, m.signature.task, *how).set(1)
