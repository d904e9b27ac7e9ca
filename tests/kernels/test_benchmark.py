"""The benchmark says that it needs a GPU, and itself runs without one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import jax
import pytest


def _load(path: Path) -> ModuleType:
    """A program that is run from the checkout is not on the path of the tests."""
    spec = importlib.util.spec_from_file_location("benchmarks_kernels", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


benchmark = _load(Path(__file__).parents[2] / "benchmarks" / "kernels.py")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "rows.json"
    arguments = ["--cpu", "--operations=softmax_expand", "--dtypes=float32", "--network="]
    assert benchmark.main([*arguments, f"--json={found}"]) == 0
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert [row["backward"] for row in rows] == [False, True]
    for row in rows:
        assert row["ms"] > 0
        assert row["error"] < 2e-6
    assert "einsum" in capsys.readouterr().out


def test_bytes_are_those_of_the_pixels() -> None:
    case = benchmark.Case("projected_expand", 4, 5, 3, 8, "bfloat16", backward=True, frames=2)
    assert case.bytes == 2 * (4 * 5) * (5 * 3) * 2
