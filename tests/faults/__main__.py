"""Make faults, and judge what clients saw: ``python -m tests.faults [short|full] [--only NAME]... [--seed N]``.

Exit status 1 where a step was lost or doubled, or something else went wrong; in CI also where a fault cannot be made.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.faults import local, shared
from tests.faults.report import HEAD, Row, verdict
from tests.faults.running import Missing, Run
from tests.support import artifacts

FAULTS = {fault.__name__.replace("_", "-"): fault for fault in (*local.FAULTS, *shared.FAULTS)}
# What the short run leaves out, to stay below a minute: it needs long pauses, or differs little from another.
LONG = {
    *("terminate", "stop-engine", "locked", "read-only", "truncated", "clock-steps"),
    *("rolling-restart", "redis-paused", "redis-slow", "failover"),
}


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("extent", nargs="?", choices=("short", "full"), default="full")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="only this fault; may be repeated")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--out", type=Path, help="write the table to this file, too")
    options = parser.parse_args()
    short = options.extent == "short"
    chosen = options.only or [name for name in FAULTS if not (short and name in LONG)]
    print(f"{len(chosen)} faults, {options.extent}, seed {options.seed}", flush=True)
    rows, skipped = [], []
    for name in chosen:
        row, began = Row((FAULTS[name].__doc__ or name).strip().rstrip("."), 0), time.monotonic()
        print(f"  {name} ...", end=" ", flush=True)
        try:
            _run(name, row, options.seed, short=short)
        except (Missing, pytest.skip.Exception) as missing:
            skipped.append(f"{name} ({missing})")
            print(f"not done: it needs {missing}", flush=True)
            continue
        except Exception as error:  # noqa: BLE001 - the other faults are made all the same
            row.failed = f"{type(error).__name__}: {error}"
        rows.append(row)
        print(f"{'ok' if row.fine else 'BAD'} ({time.monotonic() - began:.0f} s) {row.failed}", flush=True)
        for history in row.histories:
            for wrong in history.wrong[:2]:
                print(f"    {history.session}: {wrong}", flush=True)
    told = [HEAD, "|---" + "|---:" * 8 + "|", *(row.line() for row in rows), "", verdict(rows, skipped)]
    print("\n" + "\n".join(told))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(told) + "\n")
    return int(any(not row.fine for row in rows) or bool(skipped and os.environ.get("CI") == "true"))


def _run(name: str, row: Row, seed: int, *, short: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="lstm-serve-faults-") as folder:
        models = artifacts.repository(Path(folder, "models"), sum=artifacts.running_sum)
        place = Path(folder, name)
        place.mkdir()
        FAULTS[name](Run(row, place, models, seed, short=short))


if __name__ == "__main__":
    sys.exit(main())
