"""An import only points down, and the command starts without torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "alignlab"
FLOORS = {
    **dict.fromkeys(("errors", "rows", "batches", "statistics", "kernels"), 0),
    "losses": 1,
    **dict.fromkeys(("data", "models", "worlds"), 2),
    "rollout": 3,
    "methods": 4,
    **dict.fromkeys(("contracts", "evaluate", "report"), 5),
    "app": 6,
}
APP = ("configs", "runs", "planning", "work", "building", "commands", "cli", "api")
"""Rooms of the app in their order, and what stands on top: each imports only from those before it, or from itself."""
MODULES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Rooms of alignlab that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("alignlab.")}
    return found


def modules_imported(path: Path) -> set[str]:
    """Modules of alignlab that a module imports by full name, anywhere in it, in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else str(node.module) for name in below}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(NAMES)


def name_of(path: Path) -> str:
    return ".".join(("alignlab", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


NAMES = {name_of(path): path for path in MODULES}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in FLOORS], ids=lambda p: str(p.relative_to(ROOT)))
def test_an_import_points_down_or_stays_in_its_room(path: Path):
    room = room_of(path)
    for other in imports(path) - {room}:
        both_on_the_ground = FLOORS[other] == FLOORS[room] == 0
        assert FLOORS[other] < FLOORS[room] or both_on_the_ground, f"{room} (floor {FLOORS[room]}) imports {other}"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} - {"__init__", "__main__"} == set(FLOORS)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("alignlab.app.")])
def test_inside_the_app_an_import_points_to_a_room_before(name: str):
    place = APP.index(name.split(".")[2])  # every room and module of the app has its place
    for other in modules_imported(NAMES[name]):
        if other.startswith("alignlab.app."):
            assert APP.index(other.split(".")[2]) <= place, f"{name} imports {other}"


def test_no_import_leads_back_to_where_it_began():
    graph = {name: modules_imported(path) for name, path in NAMES.items()}
    list(TopologicalSorter(graph).static_order())  # CycleError names the modules of a circle


@pytest.mark.parametrize("library", ["hydra", "omegaconf"])
def test_hydra_stays_in_the_app(library: str):
    for path in MODULES:
        tree = ast.parse(path.read_text())
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        if any(name.split(".")[0] == library for name in names):
            assert room_of(path) == "app", path


def test_the_command_and_the_package_import_no_torch():
    code = "import sys, alignlab, alignlab.app.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]
