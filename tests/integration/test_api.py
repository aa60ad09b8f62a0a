"""The native API over HTTP: what each route answers, and what it says to bad input."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.artifacts import POISON
from tests.support.server import Server, create


def _steps(client: httpx.Client, session: str, **body: object) -> httpx.Response:
    return client.post(f"{session}/steps", json=body)


def _problem(answer: httpx.Response, status: int, kind: str, field: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:lstm-serve:problem:{kind}"
    assert document["status"] == status
    assert document["detail"]
    assert document.get("field") == field
    return document


class TestModels:
    def test_list(self, client: httpx.Client) -> None:
        """Every model that could be loaded is listed with what it takes and answers."""
        models = {m["name"]: m for m in client.get("/v1/models").json()["models"]}
        assert set(models) == {"language", "forecast", "sum", "poison"}
        assert models["language"]["task"] == "language"
        assert models["sum"]["inputs"][0]["name"] == "x"
        assert models["sum"]["state_bytes"] == 4

    def test_show(self, client: httpx.Client) -> None:
        """A model tells its versions."""
        assert client.get("/v1/models/sum").json()["versions"] == ["1"]

    def test_unknown(self, client: httpx.Client) -> None:
        """An unknown model or version is 404 and says what there is."""
        _problem(client.get("/v1/models/nope"), 404, "unknown-model", "model")
        answer = client.get("/v1/models/sum", params={"version": "7"})
        assert "there is 1" in _problem(answer, 404, "unknown-model", "version")["detail"]

    def test_predict_is_ragged(self, client: httpx.Client) -> None:
        """Sequences of any lengths are answered in their order, each as if it were alone."""
        answer = client.post("/v1/models/sum/predict", json={"inputs": [[1, 2, 3], [10]], "return": "all"})
        assert answer.json()["outputs"] == [{"y": [[1.0], [3.0], [6.0]]}, {"y": [[10.0]]}]

    def test_predict_text(self, client: httpx.Client) -> None:
        """A language model takes texts and answers the most likely next symbols of each."""
        outputs = client.post("/v1/models/language/predict", json={"text": ["ab", "c"], "top_k": 3}).json()["outputs"]
        assert [len(o["tokens"]) for o in outputs] == [3, 3]
        assert outputs[0]["logprobs"] == sorted(outputs[0]["logprobs"], reverse=True)
        assert all(len(t) == 1 for t in outputs[0]["text"])

    def test_generate_from_a_prompt(self, client: httpx.Client) -> None:
        """A prompt is continued without a session; the same seed gives the same text."""
        body = {"text": "hello", "max_steps": 8, "seed": 3}
        first, second = (client.post("/v1/models/language/generate", json=body).json() for _ in range(2))
        assert first == second
        assert len(first["text"]) == first["steps"] == 8
        assert "position" not in first


class TestSessions:
    def test_create_and_show(self, client: httpx.Client) -> None:
        """A session begins at position 0 and tells when it ends."""
        answer = client.post("/v1/sessions", json={"model": "sum", "ttl": 60})
        session = answer.json()
        assert answer.status_code == 201
        assert answer.headers["location"] == f"/v1/sessions/{session['id']}"
        assert re.fullmatch(r"[0-9a-f]{32}", session["id"])
        assert (session["position"], session["ttl"]) == (0, 60)
        assert session["expires_at"] > session["created_at"]
        assert client.get(answer.headers["location"]).json() == session

    def test_steps_carry_the_state(self, client: httpx.Client) -> None:
        """What a session was sent before counts, however it was cut up."""
        session = create(client, "sum")
        assert _steps(client, session, inputs=[1, 2], **{"return": "all"}).json()["outputs"] == {"y": [[1.0], [3.0]]}
        answer = _steps(client, session, inputs=[[4]]).json()
        assert (answer["outputs"], answer["position"], answer["steps"]) == ({"y": [7.0]}, 3, 1)

    def test_long_chunks_are_cut_unseen(self, client: httpx.Client) -> None:
        """A chunk of many segments is answered like any other."""
        answer = _steps(client, create(client, "sum"), inputs=[1] * 1000, **{"return": "all"}).json()
        assert answer["outputs"]["y"] == [[float(i + 1)] for i in range(1000)]
        assert answer["position"] == 1000

    def test_a_repeat_gets_the_same_bytes(self, client: httpx.Client) -> None:
        """A repeat of the last request is answered byte for byte, and nothing moves."""
        session = create(client, "sum")
        first = _steps(client, session, inputs=[5], position=0)
        second = _steps(client, session, inputs=[5], position=0)
        assert second.content == first.content
        assert second.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers
        assert client.get(session).json()["position"] == 1

    def test_another_position_is_a_conflict(self, client: httpx.Client) -> None:
        """A step for elsewhere is 409, tells where the session is, and moves nothing."""
        session = create(client, "sum")
        _steps(client, session, inputs=[5])
        assert (
            _problem(_steps(client, session, inputs=[6], position=0), 409, "position-conflict", "position")["position"]
            == 1
        )
        _problem(_steps(client, session, inputs=[6], position=9), 409, "position-conflict", "position")
        assert _steps(client, session, inputs=[1], position=1).json()["outputs"] == {"y": [6.0]}

    def test_last_request_is_told(self, client: httpx.Client) -> None:
        """A session tells the steps of its last request, so that a broken stream can be picked up."""
        session = create(client, "sum")
        _steps(client, session, inputs=[1, 2])
        assert client.get(session).json()["last"] == {"position": 0, "steps": 2, "outputs": {"y": [3.0]}}

    def test_reset(self, client: httpx.Client) -> None:
        """A reset session is at position 0 with the initial state."""
        session = create(client, "sum")
        _steps(client, session, inputs=[5])
        assert client.post(f"{session}/reset").json()["position"] == 0
        assert _steps(client, session, inputs=[2], position=0).json()["outputs"] == {"y": [2.0]}

    def test_delete(self, client: httpx.Client) -> None:
        """A deleted session is 410 with the reason, for reads and steps and deletes alike."""
        session = create(client, "sum")
        assert client.delete(session).status_code == 204
        for answer in (client.get(session), _steps(client, session, inputs=[1]), client.delete(session)):
            assert _problem(answer, 410, "session-ended", "id")["reason"] == "deleted"

    def test_list_pages(self, client: httpx.Client) -> None:
        """Every session is on exactly one page."""
        made = {create(client, "forecast").rsplit("/", 1)[1] for _ in range(5)}
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = client.get("/v1/sessions", params={"model": "forecast", "cursor": cursor, "limit": 2}).json()
            found += [s["id"] for s in page["sessions"]]
            cursor = page["cursor"]
        assert made <= set(found)
        assert len(found) == len(set(found))


class TestGeneration:
    def test_text_becomes_part_of_the_session(self, client: httpx.Client) -> None:
        """Generated text moves a language session by as many steps."""
        session = create(client, "language")
        _steps(client, session, text="hello")
        answer = client.post(f"{session}/generate", json={"max_steps": 7, "seed": 1}).json()
        assert (len(answer["text"]), answer["finish_reason"], answer["position"]) == (7, "length", 12)
        assert client.get(session).json()["position"] == 12

    def test_the_same_as_sending_the_text(self, client: httpx.Client) -> None:
        """A session that generated a text answers as one that was sent it."""
        generating, sent = create(client, "language"), create(client, "language")
        _steps(client, generating, text="hello")
        text = client.post(f"{generating}/generate", json={"max_steps": 7}).json()["text"]
        _steps(client, sent, text="hello" + text)
        answers = [_steps(client, s, text=" ").json()["outputs"] for s in (generating, sent)]
        assert answers[0] == answers[1]

    def test_a_forecast_leaves_the_session(self, client: httpx.Client) -> None:
        """A forecast is a what-if unless it is told to advance; the horizon feeds its own predictions back."""
        session = create(client, "forecast")
        first = _steps(client, session, inputs=[0.1, 0.2]).json()["outputs"]["prediction"]
        horizon = client.post(f"{session}/generate", json={"max_steps": 3}).json()
        assert horizon["outputs"]["prediction"][0] == first
        assert horizon["position"] == client.get(session).json()["position"] == 2
        by_hand = _steps(client, session, inputs=[first]).json()["outputs"]["prediction"]
        assert by_hand == horizon["outputs"]["prediction"][1]

    def test_a_forecast_can_advance(self, client: httpx.Client) -> None:
        """With `advance` the forecast is consumed."""
        session = create(client, "forecast")
        _steps(client, session, inputs=[0.1])
        assert client.post(f"{session}/generate", json={"max_steps": 4, "advance": True}).json()["position"] == 5

    def test_a_repeat_gets_the_same_text(self, client: httpx.Client) -> None:
        """A generation without a seed is drawn once: its repeat gets the same bytes."""
        session = create(client, "language")
        _steps(client, session, text="a")
        first, second = (client.post(f"{session}/generate", json={"max_steps": 20, "position": 1}) for _ in range(2))
        assert first.content == second.content
        assert second.headers["idempotent-replayed"] == "true"

    def test_stop(self, client: httpx.Client) -> None:
        """Generation ends at a stop text, which is not shown."""
        body = {"text": "hello", "max_steps": 300, "seed": 5}
        text = client.post("/v1/models/language/generate", json=body).json()["text"]
        stop = text[100:103]
        answer = client.post("/v1/models/language/generate", json=body | {"stop": stop}).json()
        assert answer["finish_reason"] == "stop"
        assert answer["text"] == text[: text.index(stop)]

    def test_greedy(self, client: httpx.Client) -> None:
        """Temperature 0 takes the most likely symbol each time."""
        session = create(client, "language")
        best = _steps(client, session, text="abc", top_k=1).json()["outputs"]["tokens"]
        answer = client.post(f"{session}/generate", json={"max_steps": 1, "temperature": 0}).json()
        assert answer["outputs"]["tokens"] == best

    def test_stream(self, client: httpx.Client) -> None:
        """A stream has one event per step in the form OpenAI-compatible clients read, and ends with [DONE]."""
        session = create(client, "language")
        _steps(client, session, text="hello")
        with client.stream("POST", f"{session}/generate", json={"max_steps": 5, "seed": 1, "stream": True}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert [e["position"] for e in events] == [6, 7, 8, 9, 10]
        assert [e["choices"][0]["finish_reason"] for e in events] == [None] * 4 + ["length"]
        assert events[0]["object"] == "text_completion"
        whole = client.post("/v1/models/language/generate", json={"text": "hello", "max_steps": 5, "seed": 1}).json()
        assert "".join(e["choices"][0]["text"] for e in events) == whole["text"]

    def test_stream_of_a_forecast(self, client: httpx.Client) -> None:
        """A forecast streams its horizon."""
        session = create(client, "forecast")
        _steps(client, session, inputs=[0.5])
        with client.stream("POST", f"{session}/generate", json={"max_steps": 3, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert [len(json.loads(line[6:])["outputs"]["prediction"]) for line in lines[:-1]] == [1, 1, 1]

    def test_a_broken_stream_is_picked_up(self, client: httpx.Client) -> None:
        """A client that leaves stops the stream; what was committed can be asked for, and continued from there."""
        session = create(client, "language")
        _steps(client, session, text="hello")
        body = {"max_steps": 2000, "seed": 9, "stream": True, "position": 5}
        with client.stream("POST", f"{session}/generate", json=body) as answer:
            first = next(line for line in answer.iter_lines() if line)
        position = client.post(f"{session}/generate", json={"max_steps": 1, "seed": 9}).json()["position"]
        assert 6 < position < 2005, "the generation went on without its client"
        assert json.loads(first.removeprefix("data: "))["position"] == 6

    def test_nothing_to_continue(self, client: httpx.Client) -> None:
        """A session that was sent nothing cannot generate."""
        for stream in (False, True):
            answer = client.post(f"{create(client, 'language')}/generate", json={"stream": stream})
            _problem(answer, 409, "nothing-to-continue")


class TestBadInput:
    """Each fault gets a status, a stable type and the field; the session stays as it was."""

    @pytest.mark.parametrize(
        ("model", "body", "status", "kind", "field"),
        [
            ("sum", {}, 422, "invalid-input", "inputs"),
            ("sum", {"inputs": []}, 422, "invalid-input", "inputs"),
            ("sum", {"inputs": "abc"}, 422, "invalid-input", "inputs"),
            ("sum", {"inputs": [1, "2"]}, 422, "invalid-input", "inputs[1]"),
            ("sum", {"inputs": [True]}, 422, "invalid-input", "inputs[0]"),
            ("sum", {"inputs": [None]}, 422, "invalid-input", "inputs[0]"),
            ("sum", {"inputs": [[1, 2]]}, 422, "invalid-input", "inputs"),
            ("sum", {"inputs": [[1], [1, 2]]}, 422, "invalid-input", "inputs"),
            ("sum", {"inputs": [[[1]]]}, 422, "invalid-input", "inputs[0][0]"),
            ("sum", {"inputs": [1e300]}, 422, "invalid-input", "inputs"),
            ("sum", {"inputs": {"y": [1]}}, 422, "invalid-input", "inputs.y"),
            ("sum", {"inputs": [1] * 2001}, 413, "too-large", "inputs"),
            ("sum", {"text": "a"}, 422, "invalid-input", "text"),
            ("sum", {"inputs": [1], "top_k": 2}, 422, "invalid-input", "top_k"),
            ("sum", {"inputs": [1], "position": -1}, 422, "invalid-input", "position"),
            ("sum", {"inputs": [1], "position": "0"}, 422, "invalid-input", "position"),
            ("sum", {"inputs": [1], "position": 1.5}, 422, "invalid-input", "position"),
            ("sum", {"inputs": [1], "return": "some"}, 422, "invalid-input", "return"),
            ("sum", {"inputs": [1], "surprise": 1}, 422, "invalid-input", "surprise"),
            ("language", {"text": "hé"}, 422, "invalid-input", "text"),
            ("language", {"text": ""}, 422, "invalid-input", "text"),
            ("language", {"inputs": [29]}, 422, "invalid-input", "inputs[0]"),
            ("language", {"inputs": [-1]}, 422, "invalid-input", "inputs[0]"),
            ("language", {"inputs": [1.5]}, 422, "invalid-input", "inputs[0]"),
            ("language", {"text": "a", "inputs": [1]}, 422, "invalid-input", "text"),
            ("language", {"text": "a", "top_k": 0}, 422, "invalid-input", "top_k"),
            ("poison", {"inputs": [1, POISON]}, 422, "not-finite", None),
        ],
    )
    def test_steps(
        self, client: httpx.Client, model: str, body: dict[str, object], status: int, kind: str, field: str | None
    ) -> None:
        """A request that does not fit is refused by name."""
        session = create(client, model)
        before = client.get(session).json()
        _problem(_steps(client, session, **body), status, kind, field)
        assert client.get(session).json() == before

    @pytest.mark.parametrize(
        ("content", "status", "kind"),
        [
            (b"", 400, "malformed-body"),
            (b"{", 400, "malformed-body"),
            (b"\xff\xfe", 400, "malformed-body"),
            (b"[1]", 422, "invalid-input"),
            (b'{"inputs": [NaN]}', 422, "invalid-input"),
            (b'{"inputs": [Infinity]}', 422, "invalid-input"),
            (b'{"inputs": [1' + b"0" * 400 + b"]}", 422, "invalid-input"),
            (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "malformed-body"),
            (b'{"inputs": [' + b"1," * 60_000 + b"1]}", 413, "too-large"),
        ],
    )
    def test_bodies(self, client: httpx.Client, content: bytes, status: int, kind: str) -> None:
        """A body that is no JSON, no object, too deep or too large is refused, on the hot path and elsewhere."""
        session = create(client, "sum")
        for path in (f"{session}/steps", "/v1/models/sum/predict"):
            answer = client.post(path, content=content, headers={"content-type": "application/json"})
            document = answer.json()
            assert (answer.status_code, document["type"].rsplit(":", 1)[1]) == (status, kind), (path, document)
        assert client.get(session).json()["position"] == 0

    @pytest.mark.parametrize(
        ("body", "status", "kind", "field"),
        [
            ({"model": "nope"}, 404, "unknown-model", "model"),
            ({"model": "sum", "version": "2"}, 404, "unknown-model", "version"),
            ({}, 422, "invalid-input", "model"),
            ({"model": 1}, 422, "invalid-input", "model"),
            ({"model": "sum", "ttl": 0}, 422, "invalid-input", "ttl"),
            ({"model": "sum", "ttl": 1e12}, 422, "invalid-input", "ttl"),
        ],
    )
    def test_create(self, client: httpx.Client, body: dict[str, object], status: int, kind: str, field: str) -> None:
        """A session that cannot be made is refused by name."""
        _problem(client.post("/v1/sessions", json=body), status, kind, field)

    @pytest.mark.parametrize(
        ("model", "body", "kind", "field"),
        [
            ("language", {"max_steps": 0}, "invalid-input", "max_steps"),
            ("language", {"max_steps": 5000}, "too-large", "max_steps"),
            ("language", {"temperature": -1}, "invalid-input", "temperature"),
            ("language", {"top_p": 0}, "invalid-input", "top_p"),
            ("language", {"stop": [""]}, "invalid-input", "stop"),
            ("language", {"stop": ["a"] * 9}, "invalid-input", "stop"),
            ("language", {"seed": -1}, "invalid-input", "seed"),
            ("forecast", {"temperature": 1}, "invalid-input", "temperature"),
            ("sum", {}, "unsupported-task", None),
        ],
    )
    def test_generate(
        self, client: httpx.Client, model: str, body: dict[str, object], kind: str, field: str | None
    ) -> None:
        """A generation that cannot be is refused by name, streamed or not."""
        session = create(client, model)
        _steps(client, session, inputs=[1])
        for stream in (False, True):
            answer = client.post(f"{session}/generate", json=body | {"stream": stream})
            _problem(answer, 413 if kind == "too-large" else 422, kind, field)

    def test_unknown_paths_and_methods(self, client: httpx.Client) -> None:
        """What is not served is a problem document too."""
        _problem(client.get("/v1/nothing"), 404, "unknown-path")
        _problem(client.put("/v1/models"), 405, "wrong-method")
        _problem(client.get("/v1/sessions/x/steps"), 405, "wrong-method")

    def test_unknown_session(self, client: httpx.Client) -> None:
        """An id that nobody made is 404 everywhere."""
        path = "/v1/sessions/" + "0" * 32
        for answer in (
            client.get(path),
            client.delete(path),
            _steps(client, path, inputs=[1]),
            client.post(f"{path}/generate", json={}),
            client.post(f"{path}/reset"),
        ):
            _problem(answer, 404, "unknown-session", "id")

    def test_sequences(self, client: httpx.Client) -> None:
        """A predict request has a bound on its sequences, and one bad sequence refuses the whole."""
        _problem(client.post("/v1/models/sum/predict", json={"inputs": [[1]] * 257}), 413, "too-large", "inputs")
        _problem(client.post("/v1/models/sum/predict", json={"inputs": []}), 422, "invalid-input", "inputs")
        _problem(client.post("/v1/models/sum/predict", json={"inputs": [[1] * 1001] * 2}), 413, "too-large", "inputs")
        answer = client.post("/v1/models/poison/predict", json={"inputs": [[1], [POISON]]})
        _problem(answer, 422, "not-finite")
        answer = client.post("/v1/models/sum/predict", json={"inputs": [[1], ["a"]]})
        _problem(answer, 422, "invalid-input", "inputs[1][0]")


class TestOperation:
    def test_ready_names_what_was_left_out(self, client: httpx.Client, server: Server) -> None:
        """Broken artifacts do not stop the service: readiness and the log name each of them."""
        ready = client.get("/health/ready").json()
        assert ready["status"] == "ready"
        assert sorted(ready["models"]) == ["forecast/1", "language/1", "poison/1", "sum/1"]
        for name in ("broken", "empty"):
            path = str(Path(name) / "1" / "model.onnx")
            assert any(path in problem for problem in ready["problems"])
            assert path in server.log

    def test_live(self, client: httpx.Client) -> None:
        """A process that answers is live."""
        assert client.get("/health/live").json() == {"status": "live"}

    def test_metrics(self, client: httpx.Client) -> None:
        """Requests, steps and sessions are counted, by route and model."""

        def value(line: str) -> float:
            found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
            return float(found[1]) if found else 0.0

        steps, requests = (
            'lstm_serve_steps_total{model="sum"}',
            'lstm_serve_request_seconds_count{route="/v1/sessions/{id}/steps",status="200"}',
        )
        before = value(steps), value(requests), value("lstm_serve_replayed_total")
        session = create(client, "sum")
        _steps(client, session, inputs=[1, 2, 3], position=0)
        _steps(client, session, inputs=[1, 2, 3], position=0)
        assert value(steps) == before[0] + 3
        assert value(requests) == before[1] + 2
        assert value("lstm_serve_replayed_total") == before[2] + 1
        assert value('lstm_serve_sessions{where="live"}') >= 1
        assert value("lstm_serve_loops_ended_total") == 0

    def test_openapi_describes_errors(self, client: httpx.Client) -> None:
        """Every operation documents its errors as what they are: problems."""
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            for method, operation in operations.items():
                problems = operation["responses"]["4XX"]["content"]
                assert list(problems) == ["application/problem+json"], (path, method)
                assert "HTTPValidationError" not in str(operation), (path, method)

    def test_openapi_describes_the_hot_path(self, client: httpx.Client) -> None:
        """The plain ASGI endpoint stands in the OpenAPI document like the others."""
        steps = client.get("/openapi.json").json()["paths"]["/v1/sessions/{id}/steps"]["post"]
        properties = steps["requestBody"]["content"]["application/json"]["schema"]["properties"]
        assert set(properties) == {"inputs", "text", "position", "return", "top_k"}
        assert steps["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("StepsAnswer")
