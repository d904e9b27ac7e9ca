"""With jaxdeblur's flag, reductions on a CPU are the same with jit (jax-ml/jax#39103)."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

_COMPARE = """
import jaxdeblur, jax, jax.numpy as jnp
for n in (1, 129, 32769, 40001):
    i = jnp.arange(n, dtype=jnp.float32)
    rows = jnp.stack((i, 0 * i, 0 * i), axis=1)
    f = lambda x: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)
    assert (jax.jit(f)(rows) == f(rows)).all(), n
"""


def _run(code: str, flags: str | None) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process that compiles as users do."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_jitted_reductions_are_those_without_jit() -> None:
    """Also with rows that do not fill whole vectors. The process imports jaxdeblur first."""
    result = _run(_COMPARE, None)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(
    not importlib.metadata.version("jaxlib").startswith("0.10."), reason="needs jaxlib 0.10"
)
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--xla_dump_to=x", "--xla_dump_to=x --xla_cpu_experimental_ynn_fusion_type=-reduce"),
        (
            "--xla_cpu_experimental_ynn_fusion_type=dot",
            "--xla_cpu_experimental_ynn_fusion_type=dot",
        ),
    ],
)
def test_a_users_flags_stay(flags: str, expected: str) -> None:
    """The flag is appended; a user's own value of the same flag is kept."""
    result = _run("import jaxdeblur, os; print(os.environ['XLA_FLAGS'])", flags)
    assert result.stdout.strip() == expected
