"""Routes about the models, and predictions without a session."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from service.api.asgi import watching
from service.api.decoding import check_steps, decode_chunk, length
from service.api.encoding import dumps, outputs_of
from service.api.schemas import ModelDetail, ModelList, Predict, PredictAnswer, described, sent
from service.api.steps import check_answer, view_of
from service.errors import InvalidInput, TooLarge
from service.models import Model
from service.sessions.sessions import Sessions
from service.state import Chunk


def router(sessions: Sessions, max_steps: int, max_sequences: int) -> APIRouter:
    """The routes; the limits are of one prediction: steps of all its sequences, and sequences."""
    routes = APIRouter(prefix="/v1/models", tags=["models"])

    @routes.get("", response_model=ModelList)
    async def list_models() -> dict[str, Any]:
        """List the loaded models, every version of each."""
        return {"models": [_info(model) for model in sessions.models.all]}

    @routes.get("/{model}", response_model=ModelDetail)
    async def get_model(model: str, version: str | None = None) -> dict[str, Any]:
        """Show a model's highest version, or another: its inputs, outputs, and how it was made."""
        found = sessions.models.find(model, version)
        versions = [m.version for m in sessions.models.all if m.name == model]
        return _info(found) | {"versions": versions, "made": found.signature.made}

    @routes.post("/{model}/predict", response_model=PredictAnswer, openapi_extra=described(Predict))
    async def predict(model: str, body: Annotated[Predict, sent(Predict)], request: Request) -> Response:
        """Run whole sequences, of any lengths, from the initial state; nothing is kept."""
        found = sessions.models.find(model, body.version)
        steps = _bounded(body, max_steps, max_sequences)
        chunks = _sequences(found, body, max_steps)
        view = view_of(found.signature, body.returned, body.top_k)
        check_answer(found.signature, view, steps if view.every else len(chunks))
        with watching(request.receive):
            shown = await sessions.predict(found, chunks, view)
        outputs = [outputs_of(found.signature, s) for s in shown]
        answer = {"model": found.name, "version": found.version, "outputs": outputs}
        return Response(dumps(answer), media_type="application/json")

    return routes


def _bounded(body: Predict, max_steps: int, max_sequences: int) -> int:
    """The steps of all sequences, counted before any of them is looked at: refusing has to be cheap."""
    field, sequences = ("text", body.text) if body.text is not None else ("inputs", body.inputs or [])
    if len(sequences) > max_sequences:
        raise TooLarge(f"at most {max_sequences} sequences in one request, got {len(sequences)}", field=field)
    steps = sum(map(length, sequences))
    check_steps(steps, max_steps, field)
    return steps


def _sequences(model: Model, body: Predict, max_steps: int) -> list[Chunk]:
    if body.text is not None and body.inputs is not None:
        raise InvalidInput("send either text or inputs, not both", field="text")
    signature = model.signature
    if body.text is not None:
        return [decode_chunk(signature, None, t, f"inputs[{i}]", max_steps=max_steps) for i, t in enumerate(body.text)]
    if body.inputs is None:
        raise InvalidInput("inputs missing: expected a list of sequences", field="inputs")
    return [decode_chunk(signature, v, None, f"inputs[{i}]", max_steps=max_steps) for i, v in enumerate(body.inputs)]


def _info(model: Model) -> dict[str, Any]:
    signature, engine = model.signature, model.engine
    return {
        "name": model.name,
        "version": model.version,
        "fingerprint": model.fingerprint,
        "task": signature.task,
        "cell": signature.cell,
        "inputs": [i.model_dump() for i in signature.inputs],
        "outputs": [o.model_dump() for o in signature.outputs],
        "features": list(signature.features) if signature.features is not None else None,
        "vocabulary": list(signature.vocabulary) if signature.vocabulary is not None else None,
        "state_bytes": engine.layout.row_bytes,
        "provider": engine.provider,
        "bit_exact": engine.bit_exact,
        "min_rows": engine.min_rows,
        "batched": signature.batched,
        "lengths": signature.lengths,
        "steps_per_call": None if signature.has_time_axis else 1,
        "proof": signature.proof.model_dump() if signature.proof is not None else None,
    }
