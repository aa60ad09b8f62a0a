"""deploy/grafana: the dashboard asks for metrics that exist, in queries that Prometheus understands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics import Metrics
from tests.support.manifests import ROOT
from tests.support.prometheus import ours, promtool

GRAFANA = ROOT / "deploy/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/lstm-serve.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
RECORDED = {
    rule["record"] for rule in yaml.safe_load((ROOT / "deploy/recording.yml").read_text())["groups"][0]["rules"]
}


def test_provisioned() -> None:
    """The data source that panels name is the one that is set up, and asks the Prometheus of docker-compose.yml."""
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    named = [panel["datasource"] for panel in PANELS] + [t["datasource"] for p in PANELS for t in p["targets"]]
    assert named == [{"type": source["type"], "uid": source["uid"]}] * len(named)


def test_metrics_exist() -> None:
    """Every name is a series of ours, recorded, or what Prometheus and its client library tell of a process."""
    known = ours(Metrics()) | RECORDED
    for expression in EXPRESSIONS:
        assert set(re.findall(r"lstm_serve[\w:]+", expression)) <= known, expression


def test_queries_are_understood(tmp_path: Path) -> None:
    """As rules, with Grafana's variables filled in, promtool takes them all."""
    filled = [e.replace("$__rate_interval", "1m").replace("$instance", ".*") for e in EXPRESSIONS]
    assert not any("$" in e for e in filled)
    rules = [{"record": f"panel:{n}", "expr": e} for n, e in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["id"]))
def test_panels_are_told_apart(panel: dict[str, Any]) -> None:
    """Each has a title, a sentence on what it shows, a place of its own, and queries with names of their own."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in PANELS]
    assert places.count((panel["gridPos"]["x"], panel["gridPos"]["y"])) == 1
    assert [p["id"] for p in PANELS].count(panel["id"]) == 1
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
