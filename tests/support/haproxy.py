"""HAProxy with the balancer's configuration, in front of servers of this machine."""

import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.manifests import KUBERNETES, needed
from tests.support.server import wait_until

_CONFIG = (KUBERNETES / "base" / "haproxy.cfg").read_text()
_FIRST_WITH_HASH_KEY = 3


@contextmanager
def haproxy(folder: Path, ports: Sequence[int], check: str = "2s") -> Iterator[str]:
    """Its URL. The configuration is as it is, but for addresses, how often it checks, and what its version does not
    know."""
    program = needed("haproxy")
    with socket.socket() as front, socket.socket() as watch:
        front.bind(("127.0.0.1", 0))
        watch.bind(("127.0.0.1", 0))
        port, other = front.getsockname()[1], watch.getsockname()[1]
    servers = "\n".join(f"    server replica{n} 127.0.0.1:{to}" for n, to in enumerate(ports))
    text, replaced = re.subn(r"^ +server-template .*$", servers, _CONFIG, flags=re.MULTILINE)
    assert replaced == 1
    version = subprocess.run([program, "-v"], check=True, capture_output=True, text=True).stdout
    known = int(version.split("version ")[1].split(".")[0]) >= _FIRST_WITH_HASH_KEY
    text = text.replace(" hash-key addr", " hash-key addr-port" if known else "")  # here all have one address
    changes = {
        "bind :8080": f"bind 127.0.0.1:{port}",
        "bind :8404": f"bind 127.0.0.1:{other}",
        "check inter 2s": f"check inter {check}",
    }
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    path, log = folder / "haproxy.cfg", folder / "haproxy.log"
    path.write_text(text)
    with log.open("wb") as file:
        process = subprocess.Popen([program, "-db", "-f", str(path)], stdout=file, stderr=file)

    def alive() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{other}/alive").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    try:
        wait_until(alive)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
