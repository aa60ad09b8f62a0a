"""A whole measurement: ask the server for the model, run the stages or the search, tell, and write the report."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from bench.crew import Crew
from bench.errors import BenchError
from bench.figures import Tally
from bench.options import Address, Options, Slo, cores
from bench.report import CLOSED, HEAD, OPEN, draw, kept_up, line, rows, said, so_far, warnings
from bench.search import Found, search

GOOD, FAULTY, INTERRUPTED = 0, 1, 130
REFUSALS = {"overloaded", "deadline-exceeded"}  # where a search looks for the limit, they are what it finds
_ANSWER_LIMIT_S = 10.0


def measure(address: Address, model: str | None, options: Options, out: Path | None, plot: Path | None) -> int:
    """Measure, and return the exit status: 1 where an answer was wrong or refused."""
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    for path in (out, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchError(f"{path}: its folder does not exist")
    described = describe(address, model)
    run = _Measurement(Console(stderr=True), options)
    # Our own output goes by print: the lines are longer than a narrow terminal, and must not be folded.
    run.tell(
        f"{described['name']}/{described['version']}, steps a request: {options.steps}; {_way(options)}{_mode(options)}"
    )
    with Crew(address, described, options) as crew:
        try:
            found = run.stages(crew)
        finally:
            crew.close()
    if crew.problems:
        run.warn(f"ending the sessions: {said(crew.problems)}")
    verdict = None if options.slo is None or found is None else _verdict(options, options.slo, found, run.rows)
    if verdict is not None:
        run.tell(verdict)
    document = {
        "version": version("lstm-serve"),
        "model": {name: described[name] for name in ("name", "version", "fingerprint", "task", "state_bytes")},
        "cores": cores(),
        "latency": _mode(options),
        "options": options.to_json(),
        "interrupted": crew.interrupted,
        "stages": run.rows,
        "problems_at_the_end": dict(crew.problems),
        "slo": None if found is None else {"sessions": found.most, "beyond": found.beyond, "answer": verdict},
    }
    if out is not None:
        _write(out, lambda: out.write_text(json.dumps(document, indent=1) + "\n"))
    if plot is not None and run.rows:
        _write(plot, lambda: draw(plot, run.rows, options))
    if crew.interrupted:
        return INTERRUPTED
    forgiven = REFUSALS if options.slo is not None else set[str]()
    faulty = crew.problems or any(row["problems"].keys() - forgiven for row in run.rows)
    return FAULTY if faulty else GOOD


class _Measurement:
    """Stages as they are run and told."""

    def __init__(self, console: Console, options: Options) -> None:
        self._console = console
        self._options = options
        self.rows: list[dict[str, Any]] = []

    def stages(self, crew: Crew) -> Found | None:
        """All stages, or those of the search; what it found, None where it was interrupted."""
        self.tell(HEAD)
        slo = self._options.slo
        if slo is not None:
            # Machines are noisy: what was too slow is tried once more before it is believed.
            found = search(lambda n: any(self._stage(crew, n) and _within(slo, self.rows[-1]) for _ in range(2)))
            return None if crew.interrupted else found
        for sessions in self._options.sessions:
            if not self._stage(crew, sessions):
                break
        return None

    def _stage(self, crew: Crew, sessions: int) -> bool:
        """Run one; False where it was interrupted, or before."""
        if crew.interrupted:
            return False
        with self._progress(sessions) as show:
            stage = crew.run(sessions, show)
        if stage.tally.seconds == 0:  # interrupted in the warm-up
            return False
        row = rows(stage, self._options)
        self.rows.append(row)
        self.tell(line(row))
        for warning in warnings(row, self._options.processes):
            self.warn(warning)
        return not crew.interrupted

    @contextmanager
    def _progress(self, sessions: int) -> Iterator[Callable[[int, Tally], None]]:
        """What has been counted so far, on a terminal, while it goes on."""
        with self._console.status(so_far(sessions, Tally())) as status:
            yield lambda sessions, tally: status.update(so_far(sessions, tally))

    def tell(self, sentence: str) -> None:
        """A line of the result."""
        print(sentence, flush=True)

    def warn(self, sentence: str) -> None:
        """What has to be known of it."""
        self._console.print(f"warning: {sentence}", markup=False, highlight=False, soft_wrap=True)


def describe(address: Address, model: str | None) -> dict[str, Any]:
    """What the server tells of the model, or of its first; BenchError where there is no such server or model."""
    try:
        names = [str(told["name"]) for told in _get(address, "/v1/models")["models"]]
    except (KeyError, TypeError):
        raise BenchError(f"what answers at http://{address.authority} is no lstm-serve") from None
    if not names:
        raise BenchError(f"the server at {address.authority} serves no model")
    if model is not None and model not in names:
        raise BenchError(f"--model: the server has no model {model!r} (it has {', '.join(dict.fromkeys(names))})")
    return _get(address, f"/v1/models/{quote(model or names[0], safe='')}")


def _get(address: Address, path: str) -> dict[str, Any]:
    connection = HTTPConnection(address.host, address.port, timeout=_ANSWER_LIMIT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if answer.status != 200 or not isinstance(told, dict):
            raise ValueError(f"status {answer.status}")
    except (OSError, HTTPException, ValueError) as error:
        raise BenchError(f"no lstm-serve answers at http://{address.authority}: {error}") from error
    finally:
        connection.close()
    return told


def _way(options: Options) -> str:
    if options.transport == "http":
        return ""
    return f"WebSocket, {'binary' if options.binary else 'JSON'}, {options.in_flight} in flight; "


def _mode(options: Options) -> str:
    return CLOSED if options.rate is None else f"{options.rate:g} requests/s per session, {OPEN}"


def _within(slo: Slo, row: Mapping[str, Any]) -> bool:
    """Whether a stage kept the promise: the latency, every answer, and the pace."""
    latency = row["latency_ms"][slo.quantile]
    return latency is not None and latency <= slo.limit_s * 1e3 and kept_up(row) and not row["problems"]


def _verdict(options: Options, slo: Slo, found: Found, shown: list[dict[str, Any]]) -> str:
    """The answer in a sentence."""
    by_sessions = {row["sessions"]: row for row in shown}
    pace = "one request after the other" if options.rate is None else f"{options.rate:g} requests/s each"
    limit = f"{slo.quantile} of {slo.limit_s * 1e3:g} ms ({pace})"

    def at(sessions: int) -> str:
        row = by_sessions[sessions]
        latency = row["latency_ms"][slo.quantile]
        told = "no answer" if latency is None else f"{slo.quantile} {latency:.3g} ms"
        return f"{told} ({said(row['problems'])})" if row["problems"] else told

    if found.most == 0:
        return f"no session on this machine within a {limit}: {at(1)} with one"
    if found.beyond is None:
        return f"at least {found.most} sessions on this machine within a {limit}: {at(found.most)}; no more were tried"
    return (
        f"{found.most} sessions on this machine within a {limit}: {at(found.most)}; {at(found.beyond)} "
        f"with {found.beyond}"
    )


def _write(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from error
