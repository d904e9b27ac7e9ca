"""The source tree: folders by topic, one-way imports, no large module, and a quick start."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxdeblur

PACKAGE = Path(jaxdeblur.__file__).parent
ROOT = PACKAGE.parent
# Each folder imports only from those before it.
ORDER = (
    "video",
    "data",
    "models",
    "paths",
    "weights",
    "deploy",
    "restoration",
    "evaluation",
    "training",
    "app",
    "table1",
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Returns the package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {str(node.module)}
    return found & MODULES.keys()


def rank(name: str) -> int:
    """Returns a module's place in the order: below the folders, in one of them, or above."""
    if name == "jaxdeblur.models.registry":  # It lists every model, blur paths included.
        return ORDER.index("paths")
    room = ([*name.split("."), ""])[1]
    if room in ("presets", "testing", "commands", "__main__"):
        return len(ORDER) + (room in ("commands", "__main__"))
    return ORDER.index(room) if room in ORDER else -1


def test_imports_run_one_way() -> None:
    graph = {name: imports_of(path) for name, path in MODULES.items()}
    for lazy in ("jaxdeblur", "jaxdeblur.models"):
        graph[lazy] = set()  # their members are imported on first use
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules
    backwards = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if rank(other) > rank(name)
    ]
    assert not backwards
    kernels = [path for path in (ROOT / "kernels").glob("*.py") if imports_of(path)]
    assert not kernels, "kernels know nothing of jaxdeblur"


def test_only_siblings_names_table_1() -> None:
    assert len(MODULES) - len(_without_table_1()) > 10
    named = [n for n in _without_table_1() if "jaxdeblur.table1" in MODULES[n].read_text()]
    assert named == ["jaxdeblur.siblings"]


def _without_table_1() -> list[str]:
    return [name for name in MODULES if not name.startswith("jaxdeblur.table1")]


@pytest.mark.stress  # imports everything in a process of its own
def test_table_1_can_be_taken_out(tmp_path: Path) -> None:
    """Without its folder, all modules load and frames are restored."""
    left_out = shutil.ignore_patterns("table1", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "jaxdeblur", ignore=left_out)
    (tmp_path / "kernels").symlink_to(ROOT / "kernels")
    names = sorted(n for n in _without_table_1() if not n.endswith(("__main__", ".app.page")))
    code = f"""
import importlib, importlib.util, sys
# An editable installation would find what was taken out.
sys.meta_path[:] = [f for f in sys.meta_path if "_Editable" not in repr(f)]
assert importlib.util.find_spec("jaxdeblur.table1") is None
for name in {names}: importlib.import_module(name)
import jaxdeblur, numpy
from jaxdeblur import commands, presets
from jaxdeblur.weights import load, shipped
assert jaxdeblur.__file__.startswith({str(tmp_path)!r})
assert "fsta" in presets.PRESETS and "srn" not in presets.PRESETS
assert "export" in commands.COMMANDS and "convert" not in commands.COMMANDS
print(load.load_model(shipped.default_name()).preset)
frames = numpy.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), numpy.uint8)
for frame in jaxdeblur.Deblurrer("strcnn_dtb_live").stream(frames): print(frame.shape)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["strcnn_dtb_paths", *["(32, 48, 3)"] * 2]


def test_no_module_calls_what_another_keeps_for_itself() -> None:
    public = {"_replace", "_asdict", "_fields", "_exit"}  # of named tuples, and of os
    private = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxdeblur"):
                private += [f"{name}: {a.name}" for a in node.names if a.name.startswith("_")]
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
                is_private = node.attr.startswith("_") and not node.attr.startswith("__")
                private += [f"{name}: {ast.unparse(node)}"] * (is_private - (node.attr in public))
    assert not private


def defined_by(path: Path) -> Iterator[str]:
    """Yields the names of a module's classes and top-level variables."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.ClassDef):
            yield node.name
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_a_name_means_one_thing() -> None:
    meanings = defaultdict(list)
    for name, path in MODULES.items():
        # Each published network has its own blocks.
        if not name.startswith("jaxdeblur.table1"):
            for defined in defined_by(path):
                if defined[0].isupper():
                    meanings[defined].append(name)
    # Each network has its own stream state.
    several = {name: where for name, where in meanings.items() if len(where) > 1}
    assert several.keys() <= {"StreamState"}, several


@pytest.mark.parametrize(
    ("what", "written"),
    [
        ("progress line", r"\\r"),
        ("parser of WIDTHxHEIGHT", r"[)\]]x[(\[]|(split|partition)\(.x.\)"),
    ],
)
def test_there_is_one(what: str, written: str) -> None:
    programs = [*MODULES.values(), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("*.py")]
    places = [path for path in programs if re.search(written, path.read_text(encoding="utf-8"))]
    places = [path for path in places if path.name != "fuzz.py"]  # it writes damaged PNG files
    assert len(places) == 1, f"{what}: {places}"


def test_modules_are_few_and_short() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def loaded_by(code: str) -> set[str]:
    """Returns the modules that a new process has imported after running ``code``."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(shown.stdout.split())


def test_help_and_the_package_do_not_wait_for_jax() -> None:
    heavy = {"jax", "flax", "optax", "orbax", "av", "numpy"}
    assert not heavy & loaded_by("import jaxdeblur, jaxdeblur.weights, jaxdeblur.models")
    help_of = "import sys, runpy; sys.argv[1:] = ['--help']\ntry: runpy.run_path('deblur.py', {}, "
    assert not heavy & loaded_by(help_of + "'__main__')\nexcept SystemExit: pass")


def test_loading_weights_imports_no_training_code() -> None:
    loaded = loaded_by("import jaxdeblur.weights.load")
    assert "orbax.checkpoint" not in loaded
    assert not [name for name in loaded if name.startswith("jaxdeblur.training")]
    # flax.nnx itself loads Optax; none of our loaded modules mentions it.
    ours = [MODULES[name] for name in loaded & MODULES.keys()]
    assert not [path for path in ours if "optax" in path.read_text()]


def test_what_folders_offer_is_there() -> None:
    """A folder's ``__getattr__`` finds every name that its ``__all__`` lists."""
    for name in ("jaxdeblur", "jaxdeblur.models"):
        folder = importlib.import_module(name)
        assert [offered for offered in folder.__all__ if not hasattr(folder, offered)] == []
