"""README and guides agree with the code: the quick part of ``tests/docs_check.py``."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def check() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "docs_check.py")))


def test_what_pages_name_is_there(check: Any) -> None:
    pages = [*check.PAGES, *check.LAB, check.TOUR]
    assert len(check.PAGES) > 8
    assert [problem for page in pages for problem in check.missing(page)] == []


def test_the_options_of_every_command_are_right(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    shown = [command for page in check.PAGES for command in check.commands(page)]
    assert len(shown) > 30
    for command in shown:
        check.parse(command)


def test_a_wrong_option_and_a_lost_file_are_found(check: Any, tmp_path: Path) -> None:
    page = check.PAGES[1]
    with pytest.raises(SystemExit, match="--stepz=3"):
        check.parse(check.Command(page, 1, "python train.py --stepz=3", True))
    lost = ROOT / "docs" / "none.md"
    written = SimpleNamespace(
        read_text=lambda encoding: "[a](no.md), docs/no.md, `data/no.py`, python -m benchmarks.no",
        parent=lost.parent,
        relative_to=lost.relative_to,
    )
    assert [problem.split(": no ")[1] for problem in check.missing(written)] == [
        "no.md",
        "docs/no.md",
        "data/no.py",
        "module benchmarks.no",
    ]


def test_the_two_ways_are_those_of_the_code() -> None:
    """Figures of docs/architecture.md: each line's module exists and defines its last word."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    figures = re.findall(r"^```\n(commands/\w+ .*?)^```", text, re.M | re.S)
    assert [len(figure.splitlines()) for figure in figures] == [10, 10]
    for line in "".join(figures).splitlines():
        module, _, name = re.split(r"\s{2,}", line)
        places = [ROOT / module, ROOT / f"{module}.py", ROOT / "jaxdeblur" / f"{module}.py"]
        source = next(place for place in places if place.exists()).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.M), line


def test_the_map_has_every_module_in_its_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.partition("## The modules")[2].split("```")[1]
    rooms = dict(re.findall(r"^(\w+)/\n((?:  .*\n)+)", tree, re.M))
    for top in ("jaxdeblur", "kernels"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_in_wing = top == "jaxdeblur" and len(parts) > 2
            room, *names = parts[1:] if is_in_wing else parts[:2]
            for name in set(names) - {"__init__", "__main__"}:
                assert re.search(rf"\b{name}\b", rooms[room]), path
    rooms.pop("benchmarks")  # programs whose docstrings say what they measure
    for room, lines in rooms.items():
        folder = next(place for place in (ROOT / "jaxdeblur" / room, ROOT / room) if place.is_dir())
        for names in re.findall(r"^  (\S.*?)  ", lines, re.M):
            for name in names.split(", "):
                assert list(folder.glob(f"{name.rstrip('/')}*")), f"{room}/{name}"


def test_the_site_has_every_page() -> None:
    """`make docs` itself fails at a page or a link that is not there."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", site, re.M)) - {"index.md", "contributing.md"}
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert named == pages


def test_examples_are_short_and_all_are_run(check: Any) -> None:
    extensions = {"demo", "temporal_mean", "window_max"}  # the demo, and two for train.py
    there = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
    assert there.keys() - extensions == check.EXAMPLES.keys()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in check.EXAMPLES:
        assert len(there[name].read_text(encoding="utf-8").splitlines()) < 60, name
        assert f"examples/{name}.py" in text, name


def test_the_tour_is_a_notebook_without_results_whose_imports_exist(check: Any) -> None:
    notebook = json.loads(check.TOUR.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert isinstance(cell["metadata"], dict)
        assert "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    runner = runpy.run_path(str(ROOT / "tests" / "notebook.py"))
    imports = [
        node
        for code in runner["code_cells"](check.TOUR)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(imports) > 10
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            missing = [a.name for a in node.names if not hasattr(module, a.name)]
            assert not [n for n in missing if not _is_module(f"{node.module}.{n}")]
        else:
            assert all(_is_module(alias.name) for alias in node.names)


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def calls_that_do_not_fit(source: str) -> list[str]:
    """Returns the calls of our functions whose arguments these would refuse.

    Sees functions and classes imported from ``jaxdeblur`` by name, also inside ``jax.jit``.
    """
    tree, ours, problems = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxdeblur"):
            module = importlib.import_module(node.module or "")
            ours |= {each.asname or each.name: getattr(module, each.name) for each in node.names}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        of = call.func
        if isinstance(of, ast.Call) and ast.unparse(of.func) == "jax.jit" and len(of.args) == 1:
            of = of.args[0]
        starred = any(isinstance(each, ast.Starred) for each in call.args)
        if not (isinstance(of, ast.Name) and callable(ours.get(of.id))) or starred:
            continue
        named = {each.arg: None for each in call.keywords if each.arg}
        try:
            inspect.signature(ours[of.id]).bind(*call.args, **named)
        except TypeError as error:
            problems.append(f"{of.id}: {error}")
    return problems


def test_examples_call_functions_as_they_are(check: Any) -> None:
    """``make docs-check`` runs them, which takes minutes."""
    cells = json.loads(check.TOUR.read_text())["cells"]
    tour = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    scripts = [path.read_text() for path in sorted((ROOT / "examples").glob("*.py"))]
    assert len(scripts) > 8
    assert [problem for each in (tour, *scripts) for problem in calls_that_do_not_fit(each)] == []


def test_a_call_that_lacks_an_argument_is_found() -> None:
    given = "from jaxdeblur.paths.window_fit import fit_window\njax.jit(fit_window)(a, b, x=1)"
    (problem,) = calls_that_do_not_fit(given)
    assert problem.startswith("fit_window: ")
