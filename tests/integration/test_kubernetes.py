"""deploy/kubernetes: what is built is valid, and keeps the rules that no schema knows."""

import re
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from prometheus_client import Metric

from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.support.manifests import KUBERNETES, ROOT, Manifest, built, containers, named, of_kind

VERSIONS = ("1.30", "1.32", "1.34", "1.37")  # the oldest that has all we use, to the newest whose schemas are known
QUEUE = "lstm_serve_queue_seconds"


@pytest.fixture(scope="module", params=["base", "overlays/example"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """All documents, of the base alone and of the example."""
    return built(tmp_path_factory.mktemp("kubernetes"), request.param)


@pytest.fixture(scope="module")
def deployment(manifests: list[Manifest]) -> Manifest:
    """The replicas' Deployment."""
    return named(manifests, "Deployment", "lstm-serve")


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(manifests: list[Manifest], version: str) -> None:
    """Every document has the fields of its schema, with their types, and no others."""
    assert len(manifests) > 10
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_field_that_is_none_is_found(deployment: Manifest) -> None:
    """Validation is strict: a misspelled field is refused."""
    broken = yaml.safe_load(yaml.safe_dump(deployment))
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


def test_no_more_rights_than_needed(manifests: list[Manifest]) -> None:
    """No container is root, writes its root file system, has a capability, or knows the cluster's API."""
    for pod, container in containers(manifests):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(not {"hostPath", "persistentVolumeClaim"} & set(volume) for volume in pod["volumes"])


def test_the_user_is_the_images(deployment: Manifest) -> None:
    """The replicas run as the user that the image was made for."""
    user, group = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
    context = deployment["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))


def test_resources(manifests: list[Manifest]) -> None:
    """Every container says what it needs and what it may take; a file of /tmp is memory, and has its limit."""
    for pod, container in containers(manifests):
        for kind in ("requests", "limits"):
            assert set(container["resources"][kind]) == {"cpu", "memory"}, container["name"]
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


def test_probes(manifests: list[Manifest], deployment: Manifest, client: httpx.Client) -> None:
    """Each probe asks a port that is named, for a path that is answered; a store that is away kills nobody."""
    balancer = re.findall(r"^ +monitor-uri (\S+)$", (KUBERNETES / "base/haproxy.cfg").read_text(), re.MULTILINE)
    for _, container in containers(manifests):
        ports = {port["name"] for port in container["ports"]}
        for asked in _probes(container).values():
            assert asked["port"] in ports
            if container["name"] == "server":
                assert client.get(asked["path"]).status_code == httpx.codes.OK
            else:
                assert asked["path"] in balancer
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probes = _probes(container)
    assert set(probes) == {"startupProbe", "livenessProbe", "readinessProbe"}
    assert [kind for kind, asked in probes.items() if asked["path"] == "/health/ready"] == ["readinessProbe"]


def _probes(container: Manifest) -> dict[str, Manifest]:
    return {kind: probe["httpGet"] for kind, probe in container.items() if kind.endswith("Probe")}


def test_settings_exist(manifests: list[Manifest], deployment: Manifest) -> None:
    """Every variable is a setting, with a value that it takes; where sessions are kept is told by a Secret alone."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (store,) = container["env"]
    assert store["name"] == PREFIX + "STORE"
    assert set(store["valueFrom"]) == {"secretKeyRef"}
    ((source,),) = [list(source.values()) for source in container["envFrom"]]
    data = named(manifests, "ConfigMap", "lstm-serve-settings")
    assert source["name"] == data["metadata"]["name"]
    chosen = {name.removeprefix(PREFIX).lower(): value for name, value in data["data"].items()}
    assert all(name.startswith(PREFIX) for name in data["data"])
    assert set(chosen) <= set(Settings.model_fields) - {"store"}
    Settings.model_validate(chosen)
    for secret in of_kind(manifests, "Secret"):
        assert secret["metadata"]["name"] == store["valueFrom"]["secretKeyRef"]["name"]
        assert list(secret["data"]) == [store["valueFrom"]["secretKeyRef"]["key"]]


def test_no_variables_of_services(manifests: list[Manifest]) -> None:
    """Kubernetes adds no LSTM_SERVE_PORT of its own for the Service lstm-serve: the server would refuse to start."""
    assert any(service["metadata"]["name"] == "lstm-serve" for service in of_kind(manifests, "Service"))
    assert all(pod["enableServiceLinks"] is False for pod, _ in containers(manifests))


def test_selectors_agree(manifests: list[Manifest]) -> None:
    """What selects pods selects those of exactly one Deployment, which selects its own."""
    pods = []
    for deployment in of_kind(manifests, "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert all(constraint["labelSelector"]["matchLabels"] == labels for constraint in spread)
        pods.append(labels)
    budgets = [m["spec"]["selector"]["matchLabels"] for m in of_kind(manifests, "PodDisruptionBudget")]
    policies = [m["spec"]["podSelector"]["matchLabels"] for m in of_kind(manifests, "NetworkPolicy")]
    assert _sorted(budgets) == _sorted(policies) == _sorted(pods)
    for policy in of_kind(manifests, "NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    services = [m["spec"]["selector"] for m in of_kind(manifests, "Service")]
    assert _sorted(services) == _sorted(pods)


def _sorted(labels: list[Manifest]) -> list[Any]:
    return sorted(sorted(one.items()) for one in labels)


def test_a_stop_has_the_time_it_needs(manifests: list[Manifest], deployment: Manifest) -> None:
    """No replica is killed before its wait and its drain are over, and none goes before another is there."""
    settings = named(manifests, "ConfigMap", "lstm-serve-settings")["data"]
    pod = deployment["spec"]["template"]["spec"]
    wait_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > wait_s + float(settings[PREFIX + "DRAIN_S"])
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    balancer = named(manifests, "Deployment", "lstm-serve-balancer")["spec"]["template"]["spec"]
    (stop_s,) = re.findall(r"hard-stop-after (\d+)s", (KUBERNETES / "base/haproxy.cfg").read_text())
    wait_s = balancer["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert balancer["terminationGracePeriodSeconds"] > wait_s + int(stop_s)


def test_scaling(manifests: list[Manifest], deployment: Manifest) -> None:
    """The autoscaler alone says how many replicas there are, three at least, as many as the balancer has room for."""
    (scaler,) = of_kind(manifests, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "lstm-serve"}
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicas"] == 3
    (room,) = re.findall(r"server-template \w+ (\d+) ", (KUBERNETES / "base/haproxy.cfg").read_text())
    surge = deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    assert scaler["spec"]["maxReplicas"] + surge <= int(room)


def test_scaling_by_queue_time(manifests: list[Manifest]) -> None:
    """The autoscaler's metric is what the adapter makes of what Prometheus records of a histogram of ours."""
    (scaler,) = of_kind(manifests, "HorizontalPodAutoscaler")
    asked = [m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"] if m["type"] == "Pods"]
    (adapted,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yml").read_text())["rules"]
    assert asked == [adapted["name"]["as"]]
    (group,) = yaml.safe_load((ROOT / "deploy/recording.yml").read_text())["groups"]
    rule = next(rule for rule in group["rules"] if "queue" in rule["record"])
    assert adapted["seriesQuery"].startswith(rule["record"] + "{")
    histograms: list[Metric] = [m for m in Metrics().registry.collect() if m.type == "histogram"]
    assert QUEUE in {m.name for m in histograms}
    assert {QUEUE + "_sum", QUEUE + "_count"} == set(re.findall(r"lstm_serve_\w+", rule["expr"]))
