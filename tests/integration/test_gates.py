"""``GET /v1/sessions/{id}/gates`` over HTTP: what is told, what is refused, and that it survives a kill."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import artifacts
from tests.support.server import Server, create

CELLS = ["rnn", "gru", "lstm", "peephole", "cifg"]
GATES = {"rnn": [], "gru": ["r", "z", "n"], "lstm": ["i", "f", "g", "o"]}


def told(client: httpx.Client, session: str, **query: int) -> dict[str, Any]:
    """The gates' document."""
    answer = client.get(f"{session}/gates", params=query)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def problem(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, type and field of an error."""
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].rpartition(":")[2], answer.json().get("field")


def test_the_document(client: httpx.Client) -> None:
    """Per layer the gates, h and c of each step, and the shares that are saturated; the session says what it keeps."""
    session = create(client, "language", gates=6)
    assert client.get(session).json()["gates"] == 6
    client.post(f"{session}/steps", json={"text": "once upon a time"})
    document = told(client, session, last=4)
    assert (document["position"], document["steps"]) == (16, 4)
    assert [(layer["operator"], layer["hidden"]) for layer in document["layers"]] == [("LSTM", 16)] * 2
    for layer in document["layers"]:
        values = {**layer["gates"], "h": layer["h"], "c": layer["c"]}
        assert {name: np.shape(v) for name, v in values.items()} == dict.fromkeys("ifgohc", (4, 16))
        gates = {name: np.array(v) for name, v in layer["gates"].items()}
        np.testing.assert_allclose(np.array(layer["h"]), gates["o"] * np.tanh(layer["c"]), atol=1e-6)
        steps = np.array(layer["c"])
        np.testing.assert_allclose(
            steps[1:], (gates["f"][1:] * steps[:-1] + gates["i"][1:] * gates["g"][1:]), atol=1e-6
        )
        for name, shares in layer["saturated"].items():
            units = gates[name] if name != "g" else (1 + gates[name]) / 2
            assert shares == {"below": (units < 0.1).mean(1).tolist(), "above": (units > 0.9).mean(1).tolist()}
    assert told(client, session)["steps"] == 6


def test_a_new_session_has_nothing_to_tell(client: httpx.Client) -> None:
    """Every layer, with no steps."""
    document = told(client, create(client, "language", gates=3))
    assert (document["position"], document["steps"]) == (0, 0)
    assert document["layers"][0]["gates"] == {"i": [], "f": [], "g": [], "o": []}


@pytest.mark.parametrize("gates", [0, -1, 257, 2**70, 1.5, "3", True])
def test_how_many_steps_are_kept_is_bounded(client: httpx.Client, gates: object) -> None:
    """From 1 to the setting's most, a whole number; the field is named."""
    answer = client.post("/v1/sessions", json={"model": "language", "gates": gates})
    assert problem(answer) == (422, "invalid-input", "gates")


@pytest.mark.parametrize("last", [0, -1, 7, 2**70])
def test_how_many_steps_are_asked_for_is_bounded(client: httpx.Client, last: int) -> None:
    """From 1 to what the session keeps; and a whole number."""
    session = create(client, "language", gates=6)
    assert problem(client.get(f"{session}/gates", params={"last": str(last)})) == (422, "invalid-input", "last")
    assert problem(client.get(f"{session}/gates", params={"last": "all"})) == (422, "invalid-input", "query.last")


def test_what_cannot_be_shown_says_why(client: httpx.Client) -> None:
    """A model without such operators, a session that did not ask, one that there is not, one that is over."""
    answer = client.post("/v1/sessions", json={"model": "sum", "gates": 3})
    assert problem(answer) == (422, "unsupported-task", "gates")
    assert problem(client.get(f"{create(client, 'sum')}/gates"))[:2] == (422, "unsupported-task")
    plain = create(client, "language")
    assert "gates" not in client.get(plain).json()
    assert problem(client.get(f"{plain}/gates")) == (422, "gates-not-kept", None)
    assert problem(client.get("/v1/sessions/nobody/gates"))[:2] == (404, "unknown-session")
    session = create(client, "language", gates=1)
    client.delete(session)
    assert problem(client.get(f"{session}/gates"))[:2] == (410, "session-ended")


def test_it_is_documented(client: httpx.Client) -> None:
    """The route, its parameter and its answer stand in the OpenAPI document."""
    route = client.get("/openapi.json").json()["paths"]["/v1/sessions/{id}/gates"]["get"]
    assert "last" in {parameter["name"] for parameter in route["parameters"]}
    assert route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("GatesAnswer")


def test_an_answer_that_would_take_long_to_write_is_refused(tmp_path: Path) -> None:
    """The field to ask less of is named; asking for less is answered."""
    models = artifacts.repository(tmp_path / "m", wide=lambda path: artifacts.language(path, layers=2, hidden=128))
    (tmp_path / "server").mkdir()
    with Server(tmp_path / "server", models, max_gates=1000) as server, server.client() as client:
        session = create(client, "wide", gates=1000)
        client.post(f"{session}/steps", json={"text": "abcd" * 250})
        assert problem(client.get(f"{session}/gates")) == (413, "too-large", "last")
        assert told(client, session, last=10)["steps"] == 10


def test_every_cell_survives_a_kill_and_another_replica(tmp_path: Path) -> None:
    """The same is told after SIGKILL, and by another process over the same store."""
    writers = {cell: (lambda path, cell=cell: artifacts.language(path, cell=cell)) for cell in CELLS}
    models = artifacts.repository(tmp_path / "m", **writers)
    for folder in ("server", "other"):
        (tmp_path / folder).mkdir()
    store = f"sqlite:{tmp_path}/sessions.db"
    with Server(tmp_path / "server", models, store=store) as server, server.client() as client:
        sessions = {cell: create(client, cell, gates=12) for cell in CELLS}
        for session in sessions.values():
            client.post(f"{session}/steps", json={"text": "the quick brown fox " * 5})
            client.post(f"{session}/generate", json={"max_steps": 9, "seed": 1})
        before = {cell: told(client, session) for cell, session in sessions.items()}
        for cell, document in before.items():
            assert (document["position"], document["steps"]) == (109, 12)
            assert list(document["layers"][0]["gates"]) == GATES.get(cell, GATES["lstm"])
        server.kill()
        server.start()
        assert {cell: told(client, session) for cell, session in sessions.items()} == before
        with Server(tmp_path / "other", models, store=store) as other, other.client() as second:
            assert {cell: told(second, session) for cell, session in sessions.items()} == before
            second.post(f"{sessions['gru']}/steps", json={"text": "a"})
        assert told(client, sessions["gru"])["position"] == 110
