"""jaxdeblur: video deblurring in JAX; start with ``from jaxdeblur import Deblurrer``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdeblur.restoration.deblurrer import Deblurrer

__all__ = ["VERSION", "Deblurrer"]

VERSION = "0.2.0"
"""The version of the package, which is also written into configs and metrics."""

# jaxlib 0.10 computes some jitted, vmapped reductions wrongly on CPUs (jax-ml/jax#39103). The flag
# is set here, since XLA reads its flags once, when the first device is initialised.
_WITHOUT_YNN_REDUCTIONS = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # commands report it
    _flags = os.environ.get("XLA_FLAGS", "")
    _mends = importlib.metadata.version("jaxlib").startswith("0.10.")
    if _mends and "ynn_fusion_type" not in _flags:  # keeps a user's own choice
        os.environ["XLA_FLAGS"] = f"{_flags} {_WITHOUT_YNN_REDUCTIONS}".strip()


def __getattr__(name: str) -> type[Deblurrer]:
    # Imported on first use, so that `--help` and the data tools do not wait for JAX.
    if name == "Deblurrer":
        from jaxdeblur.restoration.deblurrer import Deblurrer

        return Deblurrer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
