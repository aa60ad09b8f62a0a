"""docker-compose.yml: what it starts is hardened, found, and ended with patience. It is run by hand, in Docker."""

from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.support.manifests import KUBERNETES, ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def _started(*profiles: str) -> set[str]:
    return {name for name, s in SERVICES.items() if not s.get("profiles") or set(profiles) & set(s["profiles"])}


def test_what_is_started() -> None:
    """One server and Prometheus by default; or the balancer, replicas, Valkey and Grafana in its place."""
    (default,) = [line for line in (ROOT / ".env").read_text().splitlines() if not line.startswith("#")]
    assert default == "COMPOSE_PROFILES=single"
    assert _started("single") == {"server", "prometheus"}
    assert _started("scale") == {"balancer", "replica", "valkey", "prometheus", "grafana"}


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_hardened(service: dict[str, Any]) -> None:
    """No rights, no writing but where it is named, nothing published beyond this machine, a version that is pinned."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if "build" not in service:
        assert service["image"].rpartition(":")[2] not in ("", "latest")


def test_mounted_files_exist() -> None:
    """Docker would make a folder of a file that is missing."""
    mounted = [v for service in SERVICES.values() for v in service.get("volumes", []) if v.startswith("./")]
    assert mounted
    assert all((ROOT / v.partition(":")[0]).exists() and v.endswith(":ro") for v in mounted)


@pytest.mark.parametrize("name", ["server", "replica"])
def test_time_to_end(name: str) -> None:
    """A server is not killed before it has ended in order."""
    environment = {
        key.removeprefix(PREFIX).lower(): value for key, value in SERVICES[name].get("environment", {}).items()
    }
    settings = Settings(model_repository=ROOT / "model_repository", **environment)
    limit_s = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert settings.lame_duck_s + settings.drain_s + 5 < limit_s


def test_the_balancer_knows_in_time() -> None:
    """A replica serves on until the balancer has asked twice: the first no may have been asked just before."""
    wait_s = float(SERVICES["replica"]["environment"]["LSTM_SERVE_LAME_DUCK_S"])
    assert "check inter 2s fall 2" in (KUBERNETES / "base/haproxy.cfg").read_text()
    assert wait_s >= 3 * 2


def test_all_are_found_by_one_name() -> None:
    """Prometheus and the balancer ask for the alias of the servers, whichever of them run."""
    for name in ("server", "replica"):
        assert SERVICES[name]["networks"] == {"default": {"aliases": ["lstm-serve"]}}
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    (asked,) = job["dns_sd_configs"]
    assert (asked["names"], asked["type"], asked["port"]) == (["lstm-serve"], "A", 8000)
    assert SERVICES["balancer"]["environment"] == {"REPLICAS": "lstm-serve:8000"}


def test_valkey_keeps_what_it_is_given() -> None:
    """Nothing is evicted, and everything is logged to the volume."""
    command = SERVICES["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--maxmemory-policy"], options["--appendonly"]) == ("noeviction", "yes")
    assert SERVICES["valkey"]["volumes"] == ["state:/data"]
