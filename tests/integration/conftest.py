"""One server over small artifacts, shared by the tests that do not kill it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import artifacts
from tests.support.server import Server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good models, and what a careless operator may leave beside them."""
    folder = artifacts.repository(
        tmp_path_factory.mktemp("models"),
        language=artifacts.language,
        forecast=artifacts.forecast,
        sum=artifacts.running_sum,
        poison=artifacts.poison,
    )
    for name, content in (("broken", b"not onnx"), ("empty", b"")):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").write_bytes(content)
    return folder


@pytest.fixture(scope="session", params=[0, 1], ids=["one-process", "front-end"])
def server(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, request: pytest.FixtureRequest
) -> Iterator[Server]:
    """A running server: to its clients it is the same whether one process answers or several."""
    limits = {"max_body_bytes": 100_000, "max_steps": 2000}
    with Server(tmp_path_factory.mktemp("server"), repository, http_workers=request.param, **limits) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with server.client() as connected:
        yield connected
