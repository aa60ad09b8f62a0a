"""The opening handshake of a stream: what is accepted, and with which error anything else is refused."""

import pytest

from service.api.handshake import PATH, accepted, read, refused
from service.errors import BadHandshake, InvalidInput, ServiceError, UnknownPath, UpgradeRequired, WrongMethod
from tests.support.websocket import handshake

STREAM = PATH.format(id="abc")


def test_a_handshake_is_read() -> None:
    """The key's answer is that of the RFC's own example."""
    asked = read(handshake(f"{STREAM}?in_flight=3", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=="), 64)
    assert (asked.id, asked.in_flight) == ("abc", 3)
    assert b"\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in accepted(asked.accept)


def test_messages_in_flight_unless_told() -> None:
    """Sixteen, or as many as may be."""
    assert [read(handshake(STREAM), most).in_flight for most in (64, 4)] == [16, 4]


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        (handshake("/v1/sessions/a/b/stream"), UnknownPath, None),
        (handshake("/v1/sessions/a/steps"), UnknownPath, None),
        (handshake(STREAM).replace(b"GET", b"POST"), WrongMethod, None),
        (handshake(STREAM, Sec_WebSocket_Version="8"), UpgradeRequired, "sec-websocket-version"),
        (handshake(STREAM, Sec_WebSocket_Version=""), UpgradeRequired, "sec-websocket-version"),
        (handshake(STREAM, Sec_WebSocket_Key=""), BadHandshake, "sec-websocket-key"),
        (handshake(STREAM, Sec_WebSocket_Key="dG9vIHNob3J0"), BadHandshake, "sec-websocket-key"),
        (handshake(STREAM, Sec_WebSocket_Key="!"), BadHandshake, "sec-websocket-key"),
        (handshake(f"{STREAM}?in_flight=65"), InvalidInput, "in_flight"),
        (handshake(f"{STREAM}?in_flight=0"), InvalidInput, "in_flight"),
        (handshake(f"{STREAM}?in_flight="), InvalidInput, "in_flight"),
        (handshake(f"{STREAM}?in_flight={'9' * 5000}"), InvalidInput, "in_flight"),
        (handshake(f"{STREAM}?inflight=1"), InvalidInput, "inflight"),
    ],
)
def test_anything_else_is_refused_by_name(request_: bytes, error: type[ServiceError], field: str | None) -> None:
    """With the part that was wrong."""
    with pytest.raises(error) as found:
        read(request_, 64)
    assert found.value.field == field


def test_a_refusal_is_a_whole_http_answer() -> None:
    """After which the connection is closed."""
    assert refused(404, [(b"content-type", b"application/problem+json")], b"{}") == (
        b"HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\ncontent-length: 2\r\n"
        b"connection: close\r\n\r\n{}"
    )
