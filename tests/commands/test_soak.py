"""A short run of ``tests/stress/soak.py``: kills at random moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.stress
def test_two_kills_leave_the_parameters_bit_identical() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.stress.soak", "--kills=2", "--steps=120"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kills survived   2 of 2" in result.stdout
    assert "final parameters identical" in result.stdout
