"""The sockets that the service listens on."""

import socket

from service.errors import SettingsError


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket of the address (``shared``: one of several for it); SettingsError where it cannot be had."""
    bound = socket.socket(family := socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from error
    return bound


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; SettingsError where it cannot be had."""
    listener = bind(host, port)
    listener.listen()
    return listener


def url(bound: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
