"""The direction of imports, read from the source: nobody calls up or sideways."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "model", "export", "bench")

# The units of service/, from the entry down. A unit may import those of lower lines, and nothing of its own line.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("command", "admin"),
    ("__main__",),
    ("fronts",),
    ("app", "server"),
    ("api",),
    ("sessions",),
    ("models",),
    ("batching", "step"),
    ("pipeline", "work"),
    ("engine", "stores"),
    ("items",),
    ("views",),
    ("state", "trace", "artifact", "settings", "metrics", "logs", "clock", "sampling", "sockets"),
    ("errors", "histograms", "sizes", "store_url"),
)
LEVEL = {unit: -depth for depth, layer in enumerate(LAYERS) for unit in layer}

# What may be seen of a package from outside, by whom: everything else in it is its own business. None: by everybody.
DOORS: dict[str, set[str] | None] = {
    "service.stores.base": None,
    "service.stores.opening": {"app", "admin"},
    "service.engine.runtime": None,
    "service.engine.gates": {"models"},
    "service.engine.repository": {"models", "app", "command", "admin"},
    "service.engine.ort": {"app"},  # which version runs
    "service.sessions.sessions": None,
    "service.sessions.requests": {"api", "fronts"},
    "service.sessions.generation": {"api"},
    "service.api.*": {"app", "server", "fronts"},
    "service.fronts.supervisor": {"__main__"},
}

# Units that know less than their line would let them.
IGNORANT: dict[str, set[str]] = {
    "api": {"batching", "step", "stores", "settings", "clock"},  # it translates, and decides nothing
    "batching": {"engine", "stores", "state", "views", "metrics", "settings"},  # it calls what it was given
    "pipeline": {"engine", "stores", "state", "views", "metrics", "settings"},
    "work": {"engine", "stores", "state", "views", "metrics", "settings"},
    "stores": {"artifact", "settings", "metrics", "clock"},  # times and choices are their caller's
    "engine": {"metrics", "clock"},
    "step": {"metrics", "settings"},
}

# Libraries with an owner: who else needs one, asks the owner.
OWNED: dict[str, set[str]] = {
    "fastapi": {"api", "app"},
    "starlette": {"api", "app"},
    "uvicorn": {"__main__", "server", "fronts", "api"},
    "typer": {"command", "admin"},
    "rich": {"command", "admin"},
    "onnxruntime": {"engine"},
    "sqlite3": {"stores"},
    "redis": {"stores"},
    "prometheus_client": {"metrics", "histograms", "api"},
    "pydantic_settings": {"settings"},
    "msgspec": {"state", "trace", "views", "items", "step", "stores", "sessions", "fronts"},
    "orjson": {"api"},
    "asyncio": {"api", "sessions", "models", "batching", "pipeline", "work", "server", "fronts"},
    "numpy": {
        "fronts",
        "api",
        "sessions",
        "step",
        "items",
        "engine",
        "views",
        "state",
        "trace",
        "artifact",
        "sampling",
        "histograms",
    },
}

# What a server must never need: the extra `train`, other stations, and what only tests use.
NOT_IN_SERVICE = ("torch", "onnx", "safetensors", "matplotlib", "pandas", "scipy", "model", "export", "tests", "bench")


@dataclass(frozen=True)
class Import:
    """One module, and the name taken from it, that a file imports; ``line`` says where."""

    path: Path
    line: int
    module: str
    name: str | None

    @property
    def unit(self) -> str:
        """The unit of the importing file: ``sessions`` for ``service/sessions/live.py``."""
        return self.path.relative_to(ROOT).with_suffix("").parts[1]

    @property
    def target(self) -> str:
        """The imported module: ``service.api`` and the name ``steps`` are the module ``service.api.steps``."""
        found = ROOT / Path(*self.module.split(".")) / f"{self.name}.py"
        return f"{self.module}.{self.name}" if self.name and found.exists() else self.module

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}.{self.name or ''}".rstrip(".")


def sources(package: str) -> list[Path]:
    """The files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def imports(*packages: str) -> Iterator[Import]:
    """Every import of the packages, also those inside functions."""
    for path in [path for package in packages for path in sources(package)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (Import(path, node.lineno, alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import"
                yield from (Import(path, node.lineno, str(node.module), alias.name) for alias in node.names)


SERVICE = [found for found in imports("service") if found.target.split(".")[0] == "service"]


def unit_of(module: str) -> str:
    """The unit of a module of service/."""
    return module.split(".")[1]


def test_every_unit_has_its_line() -> None:
    """A new module of service/ is given a place in the order before it is used."""
    assert {path.relative_to(ROOT).with_suffix("").parts[1] for path in sources("service")} - {"__init__"} == set(LEVEL)


def test_imports_go_only_down() -> None:
    """Nobody in service/ imports a unit above or beside its own."""
    wrong = [i for i in SERVICE if unit_of(i.target) != i.unit and LEVEL[unit_of(i.target)] >= LEVEL[i.unit]]
    assert [str(i) for i in wrong] == []


def test_leaves_import_nothing_of_ours_but_errors() -> None:
    """What everybody uses depends on nobody."""
    leaves = LAYERS[-2]
    assert [str(i) for i in SERVICE if i.unit in leaves and unit_of(i.target) not in LAYERS[-1]] == []


def test_packages_are_entered_by_their_doors() -> None:
    """Stores are known by their contract, the engine by its runtime, sessions by what they are asked and answer."""
    wrong = []
    for i in SERVICE:
        inside = unit_of(i.target) == i.unit or (ROOT / "service" / f"{unit_of(i.target)}.py").exists()
        if not inside and not _open(i):
            wrong.append(str(i))
    assert wrong == []


def _open(found: Import) -> bool:
    guests = DOORS.get(found.target, DOORS.get(f"service.{unit_of(found.target)}.*", set()))
    return guests is None or found.unit in guests


def test_units_know_no_more_than_they_need() -> None:
    """The batcher knows no arrays and no stores, the HTTP layer neither ticks nor stores nor settings."""
    wrong = [i for i in SERVICE if unit_of(i.target) in IGNORANT.get(i.unit, set())]
    assert [str(i) for i in wrong] == []


def test_above_the_tick_nobody_sees_the_engine_at_work() -> None:
    """Sessions and transports use nothing of the engine: they reach it through the models."""
    seen = {i.name for i in SERVICE if i.unit in ("api", "sessions", "fronts") and unit_of(i.target) == "engine"}
    assert seen == set()


def test_private_names_stay_at_home() -> None:
    """A name with an underscore is imported by nobody."""
    assert [str(i) for i in imports(*PACKAGES) if (i.name or "").startswith("_") and i.name != "__main__"] == []


@pytest.mark.parametrize("package", ["engine", "stores", "sessions", "api"])
def test_within_a_package_nothing_goes_in_circles(package: str) -> None:
    """The modules of a package have an order, too."""
    after = {f"service.{package}.{path.stem}": set[str]() for path in sources(f"service/{package}")}
    for i in SERVICE:
        source = ".".join(i.path.relative_to(ROOT).with_suffix("").parts)
        if i.unit == package and i.target in after:
            after[source].add(i.target)
    while free := {module for module, needs in after.items() if not needs}:
        after = {module: needs - free for module, needs in after.items() if module not in free}
    assert after == {}


@pytest.mark.parametrize("library", OWNED)
def test_libraries_have_owners(library: str) -> None:
    """Foreign terms end at their adapter: sqlite3 in stores/, FastAPI in api/, ONNX Runtime in engine/."""
    users = {i.unit for i in imports("service") if i.module.split(".")[0] == library}
    assert users
    assert users <= OWNED[library]


def test_onnx_runtime_is_imported_in_one_place() -> None:
    """What has to be set before it is loaded is set there, whoever needs it first; its tools come in behind that."""
    found = [i for i in imports(*PACKAGES) if i.module.split(".")[0] == "onnxruntime"]
    tools, converting = "onnxruntime.quantization", "export/quantization/converting.py"
    assert {str(i.path.relative_to(ROOT)) for i in found if i.module != tools} == {"service/engine/ort.py"}
    assert {str(i.path.relative_to(ROOT)) for i in found if i.module == tools} == {converting}
    assert "service.engine.ort" in {i.target for i in imports("export") if str(i.path.relative_to(ROOT)) == converting}


def test_the_service_imports_no_training_and_no_tests() -> None:
    """Everything that runs in production is in service/ and its own few libraries."""
    assert [str(i) for i in imports("service") if i.module.split(".")[0] in NOT_IN_SERVICE] == []


def test_the_model_package_imports_nothing_of_ours() -> None:
    """Learning knows neither freezing nor serving."""
    ours = {"service", "export", "tests", "bench", "lstm_serve"}
    assert [str(i) for i in imports("model") if i.module.split(".")[0] in ours] == []


def test_export_sees_the_contract_and_the_engine_only() -> None:
    """Freezing writes what ``service/artifact`` says, and checks it with the very engine that serves."""
    seen = {i.target for i in imports("export") if i.target.split(".")[0] == "service"}
    allowed = {"service.artifact", "service.errors", "service.settings", "service.state"}
    assert {module for module in seen if unit_of(module) != "engine"} <= allowed
    assert [str(i) for i in imports("export") if i.module.split(".")[0] in ("tests", "bench", "lstm_serve")] == []


# Scripts that look inside.
MEASURING = {
    *(
        "cell_ratio.py",
        "cells.py",
        "commits.py",
        "commits_redis.py",
        "soak.py",
        "witness_model.py",
        "cuda.py",
        "filling.py",
        "inside.py",
        "kernels.py",
    ),
    *("models.py", "stages.py", "stream.py", "untrained.py", "weighing.py", "yardstick.py"),
}


def test_the_load_generator_knows_the_server_from_outside_only() -> None:
    """`lstm-serve bench` sees what every client sees; only the scripts beside it import what they measure."""
    ours = {"service", "model", "export", "tests", "lstm_serve"}
    wrong = [i for i in imports("bench") if i.path.name not in MEASURING and i.module.split(".")[0] in ours]
    assert [str(i) for i in wrong] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_init_files_are_empty(package: str) -> None:
    """Where a name comes from is where it is written; but ``export`` has a door for Python."""
    found = [path for path in sources(package) if path.name == "__init__.py"]
    assert found
    assert [path for path in found if path.read_bytes() and path != ROOT / "export" / "__init__.py"] == []


def test_the_door_of_export_opens_when_it_is_used() -> None:
    """``import export`` brings no torch; ``export.from_torch`` is there all the same, and nothing else."""
    program = """
        import sys, export
        assert not hasattr(export, "to_torch") and not {"torch", "onnx", "onnxruntime"} & set(sys.modules)
        from export.modules.converting import from_torch
        print(export.from_torch is from_torch)
    """
    assert run(program) == "True\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_can_be_read_in_one_sitting(package: str) -> None:
    """No file has 300 lines or more."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(package)}
    assert {path: n for path, n in lengths.items() if n >= 300} == {}


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, cwd=ROOT, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCK = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def test_the_service_runs_where_nothing_for_training_is_installed() -> None:
    """Every module of service/ is imported with torch, onnx and the other stations made unimportable."""
    program = BLOCK.format(blocked=NOT_IN_SERVICE) + textwrap.dedent("""
        import service
        for module in pkgutil.walk_packages(service.__path__, "service."):
            importlib.import_module(module.name)
        print(sum(name.startswith("service.") for name in sys.modules))
    """)
    modules = [path for path in sources("service") if path != ROOT / "service" / "__init__.py"]
    assert int(run(program)) == len(modules)


def test_the_command_line_is_quick_and_needs_no_extra() -> None:
    """``lstm-serve --help`` imports nothing heavy, and works where the extra ``train`` is not installed."""
    heavy = ("fastapi", "onnxruntime", "uvicorn", "prometheus_client", *NOT_IN_SERVICE[:6])
    program = BLOCK.format(blocked=heavy) + "import lstm_serve; print(len(lstm_serve.app.registered_commands))"
    assert int(run(program)) > 0
