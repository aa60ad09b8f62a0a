"""The bodies of the native API: what may be sent, how it is read, and what is answered."""

import gc
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.problems import unfit
from service.artifact import Proof

Inputs = Any  # checked against the model's signature in `decoding`, where its shape is known


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


B = TypeVar("B", bound=_Request)
_LARGE = 65_536  # bytes of a body


def parse(kind: type[B], raw: bytes) -> B:
    """A body from its bytes: every route reads with the same parser, which builds nothing that does not fit."""
    collecting = len(raw) > _LARGE and gc.isenabled()
    if collecting:
        gc.disable()  # nothing parsed can be a cycle, and looking for cycles takes most of a large body's time
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise unfit(error) from None
    finally:
        if collecting:
            gc.enable()


def sent(kind: type[B]) -> Any:  # noqa: ANN401 - what FastAPI takes as a dependency
    """The dependency of a route that takes such a body; FastAPI's own reading would parse it twice."""

    async def parsed(request: Request) -> B:
        return parse(kind, await request.body())

    return Depends(parsed)


def described(kind: type[_Request], **extra: Any) -> dict[str, Any]:  # noqa: ANN401 - parts of an OpenAPI document
    """The body of such a route for the OpenAPI document (``openapi_extra``)."""
    schema = kind.model_json_schema(by_alias=True)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}, **extra}


_INPUTS = Field(
    default=None,
    description="time steps: a list with one entry per step (a token id, a number, or the features of the step); "
    "an object of such lists by input name for a model with several inputs",
    json_schema_extra={"anyOf": [{"type": "array"}, {"type": "object"}]},
)
_RETURN: Any = Field(default="last", alias="return", description="outputs of the last step, or of all")
_TOP_K = Field(default=None, ge=1, description="language models: how many of the most likely symbols; 5 unless told")
_POSITION = Field(
    default=None,
    ge=0,
    le=2**63 - 1,
    description="the position at which the request applies: then a repeat is answered again, never applied again",
)


_Texts = Annotated[list[str], Field(fail_fast=True)]  # one fault is enough: millions would take seconds


class CreateSession(_Request):
    """A new session."""

    model: str = Field(description="name of the model")
    version: str | None = Field(default=None, description="version of the model; its highest unless told")
    ttl: float | None = Field(default=None, gt=0, description="seconds without a step after which it expires")
    gates: int | None = Field(default=None, ge=1, description="of so many last steps the gates can be asked for")


class Steps(_Request):
    """One time step or many, for a session."""

    inputs: Inputs = _INPUTS
    text: str | None = Field(default=None, description="language models: text instead of token ids")
    position: int | None = _POSITION
    returned: Literal["last", "all"] = _RETURN
    top_k: int | None = _TOP_K


class Predict(_Request):
    """Whole sequences, of any lengths, without a session."""

    inputs: list[Inputs] | None = Field(default=None, min_length=1, description="sequences, each a list of steps")
    text: _Texts | None = Field(default=None, min_length=1, description="language models: texts instead")
    version: str | None = None
    returned: Literal["last", "all"] = _RETURN
    top_k: int | None = _TOP_K


class _Generation(_Request):
    max_steps: int = Field(default=64, ge=1, description="symbols to generate, or the horizon of a forecast")
    temperature: float | None = Field(
        default=None, ge=0, le=100, description="1 unless told; 0: always the most likely symbol"
    )
    top_k: int | None = Field(default=None, ge=1, description="draw from the k most likely symbols only")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="draw from the fewest symbols whose probabilities reach p"
    )
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="the same seed draws the same symbols")
    stop: str | _Texts | None = Field(default=None, description="end before one of these texts (at most 8)")
    stream: bool = Field(default=False, description="answer with server-sent events, one per step")


class GenerateSession(_Generation):
    """Continue a session from where it stands."""

    position: int | None = _POSITION
    advance: bool | None = Field(
        default=None,
        description="whether what is generated becomes part of the session: true unless told for a language model, "
        "false for a forecast",
    )


class GeneratePrompt(_Generation):
    """Continue a prompt, without a session."""

    inputs: Inputs = _INPUTS
    text: str | None = Field(default=None, description="language models: the prompt as text")
    version: str | None = None


class Last(BaseModel):
    """The steps of a session's last request, so that a broken stream can be picked up."""

    position: int = Field(description="where it applied")
    steps: int
    dropped: int = Field(default=0, description="so many of a long stream's first steps are no longer kept")
    outputs: dict[str, Any] | None = Field(description="what it was answered; null where that was too large to keep")


class Session(BaseModel):
    """A session as it is committed."""

    id: str
    model: str
    version: str
    fingerprint: str = Field(description="sha256 of the artifact that the session is pinned to")
    position: int = Field(description="time steps that the state has consumed")
    ttl: float = Field(description="seconds without a step after which it expires")
    created_at: str
    expires_at: str
    gates: int | None = Field(default=None, description="of so many last steps the gates can be asked for")
    last: Last | None = None


class SessionPage(BaseModel):
    """Some sessions, and where to go on."""

    sessions: list[Session]
    cursor: str | None = Field(description="for the next page; null at the end")


class Saturated(BaseModel):
    """The share of a gate's units at each step that are nearly shut or nearly open; g, n and an RNN's h count as
    (1 + x) / 2."""

    below: list[float] = Field(description="below 0.1")
    above: list[float] = Field(description="above 0.9")


class LayerGates(BaseModel):
    """What happened in one recurrent operator: a list of its units' values for each step."""

    name: str
    operator: Literal["RNN", "GRU", "LSTM"]
    hidden: int
    gates: dict[str, list[list[float]]] = Field(description="i, f, g, o of an LSTM; r, z, n of a GRU; an RNN has none")
    h: list[list[float]]
    c: list[list[float]] | None = Field(default=None, description="of an LSTM")
    saturated: dict[str, Saturated] = Field(description="by gate; of an RNN: h")


class GatesAnswer(BaseModel):
    """The gates of a session's last steps, recomputed from the model's weights."""

    position: int = Field(description="where the session stands after the last of them")
    steps: int = Field(description="how many are told: fewer than asked for where the session has not consumed more")
    layers: list[LayerGates]


class StepsAnswer(BaseModel):
    """The answer to one request's steps."""

    position: int = Field(description="where the session stands after them")
    steps: int
    outputs: dict[str, Any] = Field(
        description="language models: tokens, text, logprobs of the most likely next symbols; else each output by name"
    )
    expires_at: str


class PredictAnswer(BaseModel):
    """What each sequence came to, in their order."""

    model: str
    version: str
    outputs: list[dict[str, Any]]


class GenerateAnswer(BaseModel):
    """A whole generation."""

    text: str | None = Field(default=None, description="language models: the text, without the stop string")
    outputs: dict[str, Any] = Field(description="tokens and logprobs, or the forecast by output name; one per step")
    steps: int
    finish_reason: Literal["length", "stop", "interrupted"]
    seed: int | None = None
    position: int | None = Field(default=None, description="where the session stands now")
    expires_at: str | None = None


class ModelInfo(BaseModel):
    """A loaded model."""

    name: str
    version: str
    fingerprint: str
    task: str
    cell: str | None
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    features: list[str] | None
    vocabulary: list[str] | None
    state_bytes: int = Field(description="bytes of one session's state")
    provider: str
    bit_exact: bool = Field(description="whether answers depend neither on the batch nor on how input is cut up")
    min_rows: int = Field(description="rows that a tick is filled up to, so that answers are bit-exact")
    batched: bool = Field(description="whether a call of the graph takes many rows; false: sessions share no call")
    lengths: str | None = Field(description="the graph's input with each row's number of steps, if it has one")
    steps_per_call: int | None = Field(description="1: the graph has no time axis that varies; null: any number")
    proof: Proof | None = Field(description="what runs have shown of a model that was adopted")


class ModelDetail(ModelInfo):
    """A loaded model, with its other versions and how it was made."""

    versions: list[str]
    made: dict[str, Any]


class ModelList(BaseModel):
    """Every loaded model."""

    models: list[ModelInfo]


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="stable: urn:lstm-serve:problem:...")
    title: str
    status: int
    detail: str
    field: str | None = Field(default=None, description="the part of the request that was wrong")
    position: int | None = Field(default=None, description="of a conflict: where the session stands")
    reason: str | None = Field(default=None, description="of an ended session: deleted or expired")
    request_id: str | None = Field(default=None, description="of an internal error: the log says more under it")


class Ready(BaseModel):
    """Whether the service can take requests, what it had to leave out, and what the store may lose as it is set up."""

    status: Literal["ready", "unavailable"]
    models: list[str]
    problems: list[str]
    warnings: list[str]
