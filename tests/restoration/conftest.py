"""What the tests of restoration share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def log_compiles(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Logs what is compiled; ``jax.log_compiles`` would in one thread only."""
    jax.config.update("jax_log_compiles", True)
    with caplog.at_level(logging.WARNING):
        yield
    jax.config.update("jax_log_compiles", False)
