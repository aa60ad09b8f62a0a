"""Sockets: an address is had, or refused with one sentence; several may share it if they all say so."""

import socket

import pytest

from service.errors import SettingsError
from service.sockets import bind, listen, url

has_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "http://127.0.0.1:"), pytest.param("::1", "http://[::1]:", marks=has_ipv6)]
)
def test_an_address_is_shown_as_it_is_reached(host: str, shown: str) -> None:
    """With the port that was picked, and brackets where an address has colons."""
    with listen(host, 0) as listener:
        assert url(listener) == f"{shown}{listener.getsockname()[1]}"
        socket.create_connection((host, listener.getsockname()[1])).close()


def test_an_address_in_use_is_refused() -> None:
    """With the address, also for who would share it."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        for shared in (False, True):
            with pytest.raises(SettingsError, match=f"127.0.0.1:{port}") as refused:
                bind("127.0.0.1", port, shared=shared)
            assert refused.value.field == "port"


def test_who_shares_an_address_keeps_it() -> None:
    """Others of the same service have the port that the first one picked."""
    with bind("127.0.0.1", 0, shared=True) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port, shared=True) as second:
            assert second.getsockname() == first.getsockname()
