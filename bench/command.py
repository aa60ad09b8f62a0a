"""`lstm-serve bench`: the options and their help. Nothing heavy is imported before it is called."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("bench", short_help="Measure a running server under load.")
def bench(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the server listens: http://HOST:PORT.")],
    model: Annotated[str | None, typer.Option(help="Model to load; the server's first unless told.")] = None,
    sessions: Annotated[
        str, typer.Option(help="Numbers of sessions to go through, with commas between them.")
    ] = "1,16,64,256",
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: requests per second of each session, at random times; a closed loop unless told."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each request.")] = 1,
    transport: Annotated[
        str, typer.Option(help="http: a POST for each request; websocket: a stream for each session.")
    ] = "http",
    in_flight: Annotated[int, typer.Option(help="Requests that a session has in flight, on a stream.")] = 1,
    binary: Annotated[
        bool, typer.Option("--binary", help="Send binary messages instead of JSON, on a stream.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Measured seconds at each number of sessions.")] = 5.0,
    warm_up: Annotated[float, typer.Option(help="Seconds before they are measured.")] = 1.0,
    slo: Annotated[
        str | None,
        typer.Option(help="Search how many sessions are served within a latency, such as p99=20ms, for --sessions."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that make the load; half of the cores unless told, 8 at most.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of inputs and arrivals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON report to write.", dir_okay=False)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to write; needs matplotlib, of the extra train.", dir_okay=False)
    ] = None,
) -> None:
    """Load a running server with sessions, and tell steps per second, latencies and CPU time per step.

    Makes sessions of its own, steps them with made-up inputs, checks every answer's position, and deletes them at the
    end. Exit status 1 where an answer was wrong or refused. Ctrl-C ends in order, with the report so far.
    """
    from bench.options import Options, address, counts, usual_processes
    from bench.options import slo as limit

    options = Options(
        sessions=counts(sessions),
        rate=rate,
        steps=steps,
        seconds=seconds,
        warm_up=warm_up,
        processes=usual_processes() if processes is None else processes,
        seed=seed,
        slo=None if slo is None else limit(slo),
        transport=transport,
        in_flight=in_flight,
        binary=binary,
    )
    where = address(url)
    from bench.running import measure

    if status := measure(where, model, options, out, plot):
        raise typer.Exit(status)
