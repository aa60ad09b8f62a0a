"""Prometheus, and the names under which it knows our metrics."""

import subprocess
from pathlib import Path

from service.metrics import Metrics
from tests.support.manifests import needed

_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",), "info": ("_info",)}


def ours(metrics: Metrics) -> set[str]:
    """Every series."""
    return {m.name + suffix for m in metrics.registry.collect() for suffix in _SUFFIXES[m.type]}


def promtool(*arguments: str | Path) -> None:
    """Have it check something, which must be right; the test is skipped, visibly, where it is not installed."""
    done = subprocess.run([needed("promtool"), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
