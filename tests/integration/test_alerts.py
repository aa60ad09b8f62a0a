"""deploy/alerts.yml and deploy/recording.yml: of metrics that exist, and each alert fires when it should."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.api.problems import TABLE
from service.metrics import Metrics
from tests.support.manifests import ROOT
from tests.support.prometheus import ours, promtool

RECORDING, ALERTS = ROOT / "deploy/recording.yml", ROOT / "deploy/alerts.yml"
_MODEL = 'model="language",instance="a:8000"'
_GROWS, _RESTS = "0+1x60", "7+0x60"
# Of each alert: series that must let it fire within an hour, one sample a minute, beside which it must rest.
_CASES: dict[str, list[tuple[str, str, str]]] = {
    "LstmServeDown": [('up{job="lstm-serve",instance="a:8000"}', "0x60", "1x60")],
    "LstmServeStoreUnavailable": [
        ('lstm_serve_rejected_total{reason="store-unavailable",instance="a:8000"}', _GROWS, _RESTS)
    ],
    "LstmServeStoreWarns": [('lstm_serve_store_warnings{instance="a:8000"}', "1x60", "0x60")],
    "LstmServeUndecodable": [
        ('lstm_serve_rejected_total{reason="undecodable-state",instance="a:8000"}', _GROWS, _RESTS)
    ],
    "LstmServeLoopEnded": [('lstm_serve_loops_ended_total{instance="a:8000"}', "1x60", "0x60")],
    "LstmServeTicksFail": [(f"lstm_serve_tick_failures_total{{{_MODEL}}}", _GROWS, _RESTS)],
    "LstmServeOverloaded": [('lstm_serve_rejected_total{reason="overloaded",instance="a:8000"}', _GROWS, _RESTS)],
    "LstmServeQueueLong": [  # 0.1 s each, or 0.01 s
        (f"lstm_serve_queue_seconds_sum{{{_MODEL}}}", "0+60x60", "0+6x60"),
        (f"lstm_serve_queue_seconds_count{{{_MODEL}}}", "0+600x60", "0+600x60"),
    ],
    "LstmServeCommitSlow": [  # all between 0.2 and 0.5 s, or all below 2 ms
        (f'lstm_serve_commit_seconds_bucket{{le="0.002",{_MODEL}}}', "0x60", "0+600x60"),
        (f'lstm_serve_commit_seconds_bucket{{le="0.2",{_MODEL}}}', "0x60", "0+600x60"),
        (f'lstm_serve_commit_seconds_bucket{{le="0.5",{_MODEL}}}', "0+600x60", "0+600x60"),
        (f'lstm_serve_commit_seconds_bucket{{le="+Inf",{_MODEL}}}', "0+600x60", "0+600x60"),
    ],
}


def _rules(path: Path) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(path.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_valid() -> None:
    """Prometheus takes its configuration, and the rules that it names."""
    promtool("check", "config", ROOT / "deploy/prometheus.yml")


def test_metrics_exist() -> None:
    """Every name in a rule is a series of ours or recorded here, and every reason the type of a problem."""
    recorded = {rule["record"] for rule in _rules(RECORDING)}
    kinds = {kind for _, kind, _ in TABLE.values()}
    for rule in _rules(RECORDING) + _rules(ALERTS):
        used = set(re.findall(r"lstm_serve[\w:]+", rule["expr"]))
        assert used <= ours(Metrics()) | recorded, rule
        for reasons in re.findall(r'reason=~?"([^"]*)"', rule["expr"]):
            assert set(reasons.split("|")) <= kinds, rule


@pytest.mark.parametrize("alert", [rule["alert"] for rule in _rules(ALERTS)])
def test_fires_and_rests(alert: str, tmp_path: Path) -> None:
    """Each alert fires where its trouble lasts, and rests where there is none."""
    (rule,) = [rule for rule in _rules(ALERTS) if rule["alert"] == alert]
    cases = []
    for place, fires in ((1, True), (2, False)):
        series = [{"series": case[0], "values": case[place]} for case in _CASES[alert]]
        query = {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', "eval_time": "50m"}
        query["exp_samples"] = [{"labels": "{}", "value": 1}] if fires else []
        cases.append({"interval": "1m", "input_series": series, "promql_expr_test": [query]})
    assert rule["labels"]["severity"] in ("page", "ticket")
    _run(tmp_path, cases)


def test_nobody_is_found(tmp_path: Path) -> None:
    """Where the last server has vanished from what Prometheus finds, there is no series that could be 0."""
    expr = 'count(ALERTS{alertname="LstmServeDown",alertstate="firing"})'
    query = {"expr": expr, "eval_time": "50m", "exp_samples": [{"labels": "{}", "value": 1}]}
    gone = {"series": 'up{job="lstm-serve",instance="a:8000"}', "values": "1x10"}
    _run(tmp_path, [{"interval": "1m", "input_series": [gone], "promql_expr_test": [query]}])


def test_recorded_queue_time(tmp_path: Path) -> None:
    """The recorded time is the mean over all models of a replica, and 0 where nothing is asked."""
    queue = "lstm_serve_queue_seconds"
    series = {
        f'{queue}_sum{{model="a",pod="busy"}}': "0+60x60",
        f'{queue}_count{{model="a",pod="busy"}}': "0+600x60",
        f'{queue}_sum{{model="b",pod="busy"}}': "0+0x60",
        f'{queue}_count{{model="b",pod="busy"}}': "0+600x60",
        f'{queue}_sum{{model="a",pod="idle"}}': "7+0x60",
        f'{queue}_count{{model="a",pod="idle"}}': "7+0x60",
    }
    name = "lstm_serve:queue_seconds:mean2m"
    expected = [{"labels": f'{name}{{pod="{pod}"}}', "value": value} for pod, value in (("busy", 0.05), ("idle", 0))]
    query = {"expr": name, "eval_time": "30m", "exp_samples": expected}
    given = [{"series": one, "values": values} for one, values in series.items()]
    _run(tmp_path, [{"interval": "1m", "input_series": given, "promql_expr_test": [query]}])


def test_recorded_hits(tmp_path: Path) -> None:
    """The share of requests to sessions that needed no load, whatever the reason, route and status."""
    route, asked = 'route="/v1/sessions/{id}/steps"', "lstm_serve_request_seconds_count"
    series = {
        f'{asked}{{{route},status="200",pod="a"}}': "0+500x60",
        f'{asked}{{{route},status="409",pod="a"}}': "0+100x60",
        f'{asked}{{route="/v1/sessions",status="201",pod="a"}}': "0+900x60",
        'lstm_serve_session_loads_total{why="resting",pod="a"}': "0+30x60",
        'lstm_serve_session_loads_total{why="moved",pod="a"}': "0+30x60",
    }
    name = "lstm_serve:session_hits:ratio5m"
    query = {"expr": name, "eval_time": "30m", "exp_samples": [{"labels": f'{name}{{pod="a"}}', "value": 0.9}]}
    given = [{"series": one, "values": values} for one, values in series.items()]
    _run(tmp_path, [{"interval": "1m", "input_series": given, "promql_expr_test": [query]}])


def _run(folder: Path, cases: list[dict[str, Any]]) -> None:
    written = {"rule_files": [str(RECORDING), str(ALERTS)], "evaluation_interval": "1m", "tests": cases}
    (folder / "cases.yml").write_text(yaml.safe_dump(written))
    promtool("test", "rules", folder / "cases.yml")
