"""jaxdeblur: video deblurring in JAX; ``from jaxdeblur import Deblurrer`` is the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdeblur.restoration.deblurrer import Deblurrer

__all__ = ["VERSION", "Deblurrer"]

VERSION = "0.2.0"
"""The version of the package, as installed and as written into configs and metrics."""


def __getattr__(name: str) -> type[Deblurrer]:
    # Imported when first asked for, so that `--help` and the data tools do not wait for JAX.
    if name == "Deblurrer":
        from jaxdeblur.restoration.deblurrer import Deblurrer

        return Deblurrer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
