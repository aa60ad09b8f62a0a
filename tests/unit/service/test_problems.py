"""The one table from error to answer."""

import logging

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from service import errors
from service.api.problems import TABLE, field_name, invalid, problem, problem_document, reason, unfit
from service.errors import InvalidInput, MalformedBody, Overloaded, PositionConflict, ServiceError

# They stop the start or a load of the repository: no request ever meets them.
BEFORE_ANY_REQUEST = {errors.SettingsError, errors.ArtifactError}


def every_error() -> set[type[ServiceError]]:
    """The subclasses of ``ServiceError``, however deep."""
    found: set[type[ServiceError]] = set()
    open_ends = [ServiceError]
    while open_ends:
        for kind in open_ends.pop().__subclasses__():
            found.add(kind)
            open_ends.append(kind)
    return found


def test_every_named_error_is_in_the_table() -> None:
    """No error that the service names leaves it as a neutral 500 for want of a line."""
    assert set(TABLE) == every_error() - BEFORE_ANY_REQUEST


def test_types_are_stable_and_unlike() -> None:
    """Clients tell errors apart by their type: words with hyphens, each given once."""
    kinds = [kind for _, kind, _ in TABLE.values()]
    assert len(set(kinds)) == len(kinds)
    assert all(kind.replace("-", "").isalpha() and kind.islower() for kind in kinds)


def test_a_problem_has_the_members_of_rfc_9457() -> None:
    """Type, title, status, detail, the field, and the facts of the error."""
    status, body, headers = problem(PositionConflict(position=7, named=3))
    assert status == 409
    assert orjson.loads(body) == {
        "type": "urn:lstm-serve:problem:position-conflict",
        "title": "The session is at another position",
        "status": 409,
        "detail": "the session is at position 7, the request applies at 3",
        "field": "position",
        "position": 7,
    }
    assert headers == [(b"content-type", b"application/problem+json")]


@pytest.mark.parametrize("kind", [kind for kind, (status, _, _) in TABLE.items() if status == 503])
def test_what_may_succeed_later_says_when(kind: type[ServiceError]) -> None:
    """Every 503 carries Retry-After."""
    _, _, headers = problem(kind("later"))
    assert dict(headers)[b"retry-after"] == b"1"


def test_an_error_says_itself_when_to_come_back() -> None:
    """The queue's own figure goes into the header."""
    _, body, headers = problem(Overloaded("full", retry_after_s=4))
    assert dict(headers)[b"retry-after"] == b"4"
    assert orjson.loads(body)["retry_after_s"] == 4


@pytest.mark.parametrize(
    "error", [ValueError("secret path /etc/x"), ServiceError("secret path"), errors.ArtifactError("secret")]
)
def test_an_unknown_error_tells_nothing_but_a_request_id(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """The answer is neutral; the log has the exception under the same id."""
    with caplog.at_level(logging.ERROR):
        status, body, _ = problem(error)
    assert status == 500
    assert b"secret" not in body
    document = orjson.loads(body)
    assert document["type"].endswith(":internal-error")
    assert document["request_id"] in caplog.text
    assert "secret" in caplog.text
    assert reason(error) == "internal-error"


def test_request_ids_differ() -> None:
    """Each failure can be found in the log."""
    assert len({problem_document(ValueError())[1]["request_id"] for _ in range(5)}) == 5


class Inner(BaseModel):
    count: int


class Body(BaseModel):
    rows: list[Inner]


def test_what_pydantic_finds_is_told_by_field() -> None:
    """The first fault of a body, with the name of its field as one would write it."""
    with pytest.raises(ValidationError) as found:
        Body.model_validate_json('{"rows": [{"count": 1}, {"count": "x"}]}')
    status, document = problem_document(found.value)
    assert (status, document["field"]) == (422, "rows[1].count")
    assert document["detail"].startswith("rows[1].count: ")
    assert reason(found.value) == "invalid-input"


def test_what_is_no_json_is_malformed() -> None:
    """A body that cannot be parsed is another error than one that does not fit."""
    with pytest.raises(ValidationError) as found:
        Body.model_validate_json("{")
    assert problem_document(found.value)[0] == 400


@pytest.mark.parametrize(
    ("found", "kind", "field"),
    [
        ({"type": "json_invalid", "loc": ("body", 3), "msg": "bad", "ctx": {"error": "at 3"}}, MalformedBody, None),
        ({"type": "missing", "loc": ("body", "model"), "msg": "Field required"}, InvalidInput, "model"),
        ({"type": "missing", "loc": ("body",), "msg": "Field required"}, MalformedBody, None),
        ({"type": "model_attributes_type", "loc": ("body",), "msg": "?"}, InvalidInput, None),
        ({"type": "too_large", "loc": ("query", "limit"), "msg": "?"}, InvalidInput, "query.limit"),
    ],
)
def test_what_fastapi_finds_is_told_in_our_terms(found: dict[str, object], kind: type, field: str | None) -> None:
    """Where FastAPI says ``body`` first, the client's own field is named."""
    error = invalid([found])
    assert (type(error), error.field) == (kind, field)


def test_field_names_read_as_they_would_be_written() -> None:
    """Indices in brackets, names with dots."""
    assert field_name(["inputs", 3, "x", 0]) == "inputs[3].x[0]"
    assert field_name([]) == ""


def test_what_utf_8_cannot_say_is_replaced() -> None:
    """A client that sends half a surrogate pair is told its own fault, not ours."""
    status, body, _ = problem(InvalidInput("no input '\ud800'", field="inputs.\ud800"))
    assert status == 422
    assert orjson.loads(body)["field"] == "inputs.?"


def test_many_faults_are_counted_and_not_written_out() -> None:
    """A body with a million faults is refused as cheaply as one with a few."""
    with pytest.raises(ValidationError) as found:
        Body.model_validate({"rows": [{}] * 5000})
    error = unfit(found.value)
    assert "5000 faults" in error.detail
    assert error.field is None
