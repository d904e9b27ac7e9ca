"""A few random damages (``benchmarks/fuzz.py``), and what is dangerous in code that reads files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("jaxdeblur", "kernels", ".")
    for path in (ROOT / folder).glob("**/*.py" if folder != "." else "*.py")
)


@pytest.mark.slow
def test_random_damage_ends_well_or_in_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--cases=40", "--seed=7", "--workers=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
            banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
            assert not banned & {module.split(".")[0] for module in modules}
        if isinstance(node, ast.keyword):
            assert node.arg != "shell"
            if node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is False
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            # np.load reads pickles only if it is told to; torch.load and the rest always may.
            assert called not in {"eval", "exec", "compile", "os.system", "torch.load", "yaml.load"}
            if called == "exec_module" or called.endswith(".exec_module"):
                assert path.name == "train.py", "only --extension runs a file that a user names"
