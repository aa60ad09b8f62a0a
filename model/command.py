"""`lstm-serve train language|forecast`: the options and their help. Everything else is in model/training.py.

Must not import torch before a training begins: `--help` answers at once, and without the extra `train`.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from model.errors import Interrupted, ModelError
from model.options import Options, continued, without_folders

app = typer.Typer(
    name="train",
    help="Train a recurrent network: next character of a text, or next values of a time series.",
    no_args_is_help=True,
)

_SINE_ROLLOUT = 200  # steps, more than one period and a half

Out = Annotated[Path, typer.Option(help="Folder of the checkpoint.", file_okay=False, show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the training in --out exactly where it stopped.")]
Cell = Annotated[
    str,
    typer.Option(
        help="Recurrent cell: rnn, gru, lstm, peephole (an LSTM whose gates see the cell state), or cifg (an LSTM that "
        "forgets as much as it takes in)."
    ),
]
MemorySteps = Annotated[
    int,
    typer.Option(
        help="Begin with gates that keep for between 2 and this many steps, for data where what matters lies fifty and "
        "more steps back: about the longest such lag, which --sequence has to reach over. 0: all keep for about 4."
    ),
]
Hidden = Annotated[int, typer.Option(help="Width of each recurrent layer.")]
Layers = Annotated[int, typer.Option(help="Recurrent layers.")]
Dropout = Annotated[float, typer.Option(help="Share of activations dropped in training, between layers and around.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, dropout and order.")]
MaxSeconds = Annotated[
    float | None,
    typer.Option(
        help="Train no longer than this in all, resumed parts counted; the learning rate anneals by then.",
        show_default=False,
    ),
]
Epochs = Annotated[
    int,
    typer.Option(
        help="Passes over the training data in all, resumed parts counted; --max-seconds may end them sooner."
    ),
]
Batch = Annotated[int, typer.Option(help="Streams that are read side by side.")]
Sequence = Annotated[int, typer.Option(help="Steps per chunk: how far gradients reach. The state reaches on.")]
LearningRate = Annotated[float, typer.Option(help="Peak of the learning rate: warm-up before, cosine after it.")]
WeightDecay = Annotated[float, typer.Option(help="Weight decay of AdamW on matrices.")]
Validation = Annotated[
    float,
    typer.Option(
        help="Share at the end of the data that validates instead of training; the sine exercise has its own."
    ),
]
Patience = Annotated[int, typer.Option(help="Stop after this many validations without a better one.")]
Threads = Annotated[int, typer.Option(help="Threads of torch; 0 leaves the choice to it.")]
Precision = Annotated[
    str,
    typer.Option(
        help="Matrix products in training: float32, bfloat16, or auto (bfloat16 for language where the processor "
        "has matrix units for it). Weights and results are float32."
    ),
]


@app.command()
def language(
    context: typer.Context,
    out: Out,
    text: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 text. Default: pydoc_data.topics, which every CPython carries.", show_default=False),
    ] = None,
    resume: Resume = False,
    cell: Cell = "lstm",
    memory_steps: MemorySteps = 0,
    hidden: Hidden = 320,
    layers: Layers = 2,
    dropout: Dropout = 0.3,
    embedding: Annotated[int, typer.Option(help="Width of a character's embedding.")] = 64,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    epochs: Epochs = 40,
    batch: Batch = 32,
    sequence: Sequence = 64,
    learning_rate: LearningRate = 0.004,
    weight_decay: WeightDecay = 0.01,
    validation: Validation = 0.1,
    patience: Patience = 10,
    threads: Threads = 0,
    precision: Precision = "auto",
) -> None:
    """Train a network that predicts the next character of a text.

    The first part of the text trains, the last part validates. The folder then holds weights.safetensors and
    checkpoint.json for `lstm-serve export`, training.safetensors for --resume, and losses.png.
    """
    given = {"kind": "language", "text": str(text.resolve()) if text else None}
    _train(context, out, resume, given)


@app.command()
def forecast(
    context: typer.Context,
    out: Out,
    csv: Annotated[Path | None, typer.Option(help="A CSV file with a header, oldest row first.")] = None,
    target: Annotated[str, typer.Option(help="The column to forecast (with --csv).", show_default=False)] = "",
    features: Annotated[
        list[str] | None, typer.Option(help="Further columns to read and forecast: a,b or repeated.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="A column of numbers or ISO dates: checked to increase, then left out.")
    ] = None,
    sine: Annotated[
        bool, typer.Option("--sine", help="The classical sine exercise, built in; the default without --csv.")
    ] = False,
    resume: Resume = False,
    cell: Cell = "lstm",
    memory_steps: MemorySteps = 0,
    hidden: Hidden = 64,
    layers: Layers = 2,
    dropout: Dropout = 0.0,
    rollout: Annotated[
        int | None,
        typer.Option(
            help="Also train on forecasts this many steps long, fed back in closed loop; 0 for none. "
            "Default: 200 for --sine, else 0.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    epochs: Epochs = 200,
    batch: Batch = 32,
    sequence: Sequence = 300,
    learning_rate: LearningRate = 0.003,
    weight_decay: WeightDecay = 0.0,
    validation: Validation = 0.1,
    patience: Patience = 50,
    threads: Threads = 1,  # matrices this small gain nothing from a second thread, and cost twice the CPU time
    precision: Precision = "auto",
) -> None:
    """Train a network that predicts the next row of a time series, in the series' own units.

    The first rows train, the last ones validate; scaling is learned on the first and becomes part of the network.
    The folder then holds the same files as for language, and forecast.png.
    """
    if csv and sine:
        raise ModelError("--csv and --sine exclude each other")
    if csv and not target:
        raise ModelError("--csv needs --target COLUMN")
    if not csv and (target or features or time) and not resume:
        raise ModelError("--target, --features and --time belong to --csv FILE")
    given = {
        "kind": "csv" if csv else "sine",
        "csv": str(csv.resolve()) if csv else None,
        "features": tuple(name.strip() for names in features or [] for name in names.split(",") if name.strip()),
        "rollout": rollout if rollout is not None else 0 if csv else min(_SINE_ROLLOUT, 2 * sequence // 3),
    }
    _train(context, out, resume, given)


def _train(context: typer.Context, out: Path, resume: bool, given: dict[str, Any]) -> None:
    """Run a training with the command's parameters, of which `given` are the ones that needed translation."""
    parameters = {name: value for name, value in context.params.items() if name not in ("out", "resume", "sine")}
    options = Options(**(parameters | given))
    sources = {name: context.get_parameter_source(name) for name in context.params}
    explicit = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    try:
        from model import training
        from model.display import sentences
        from model.snapshot import load_snapshot
    except ModuleNotFoundError as error:
        raise ModelError(f"training needs {error.name}: pip install 'lstm-serve[train]'") from error
    run = training.Run(
        out, without_folders(_command()), f"lstm-serve train {context.info_name} --out {shlex.quote(str(out))} --resume"
    )
    console = Console(stderr=True)
    try:
        if resume:
            snapshot = load_snapshot(out)
            metrics = training.resume(continued(snapshot.options, options, explicit), snapshot, run, console)
        else:
            metrics = training.start(options, run, console)
    except KeyboardInterrupt as interruption:  # outside the loop, or a second time in it
        raise Interrupted("stopped at once; what was saved before is kept") from interruption
    for sentence in sentences(metrics):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"checkpoint: {out}", highlight=False, soft_wrap=True)


def _command() -> str:
    """The command line that was typed, from the task on."""
    words = sys.argv[1:]
    return shlex.join(["lstm-serve", *words] if words[:1] == ["train"] else ["lstm-serve", "train", *words])


def main() -> None:
    """`python -m model.command`: the same commands by themselves."""
    try:
        app()
    except Interrupted as interruption:
        typer.echo(interruption, err=True)
        raise SystemExit(130) from interruption
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
