"""jaxdeblur: video deblurring in JAX; start with ``from jaxdeblur import Deblurrer``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdeblur.restoration.deblurrer import Deblurrer

__all__ = ["VERSION", "Deblurrer"]

VERSION = "0.2.0"
"""The version of the package, which is also written into configs and metrics."""

_FORMER = {
    "jaxdeblur.export": "export",
    "jaxdeblur.weights.convert": "convert",
    "jaxdeblur.data.prepare": "prepare",
    "jaxdeblur.data.synthesis": "synthesis",
    "jaxdeblur.training.path_clips": "path-clips",
    "jaxdeblur.training.fit_gates": "fit-gates",
}
if sys.argv[:1] == ["-m"]:  # Python imports the package first, and only then looks for the module.
    for _module in _FORMER.keys() & set(sys.orig_argv):
        print(f"python -m {_module} is now: jaxdeblur {_FORMER[_module]}", file=sys.stderr)
        sys.exit(2)

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
