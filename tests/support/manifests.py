"""The manifests of deploy/kubernetes, built as people build them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
_FOLDERS_AMONG_RESOURCES = 21  # the first kubectl 1.x that takes them; Debian 12 has 1.20
Manifest = dict[str, Any]


def needed(program: str) -> str:
    """The path of a program; the test is skipped, visibly, where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def built(folder: Path, name: str) -> list[Manifest]:
    """The documents of ``base`` or an overlay, from ``kubectl kustomize`` on a copy of them in ``folder``."""
    kubectl = needed("kubectl")
    shutil.copytree(KUBERNETES, folder, dirs_exist_ok=True)
    told = json.loads(_out(kubectl, "version", "--client", "-o", "json"))
    if int(told["clientVersion"]["minor"].rstrip("+")) < _FOLDERS_AMONG_RESOURCES:
        for path in folder.glob("overlays/*/kustomization.yaml"):
            written = yaml.safe_load(path.read_text())
            written["bases"] = ["../../base"]
            written["resources"].remove("../../base")
            path.write_text(yaml.safe_dump(written))
    return list(yaml.safe_load_all(_out(kubectl, "kustomize", str(folder / name))))


def _out(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one of this kind and name; a generated one by its name without the hash."""
    called = re.compile(re.escape(name) + "(-[a-z0-9]{10})?")
    (found,) = [m for m in of_kind(manifests, kind) if called.fullmatch(m["metadata"]["name"])]
    return found


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """All of a kind."""
    return [m for m in manifests if m["kind"] == kind]


def containers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Every container, after the pod that it belongs to."""
    for deployment in of_kind(manifests, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        for container in pod["containers"]:
            yield pod, container
