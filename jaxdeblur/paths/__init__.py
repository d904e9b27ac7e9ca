"""Inverts equation 1: fits blur paths to neighbouring frames and removes the blur.

``fit_paths``, ``deconvolve``, ``synthesise`` and ``adjoint`` (library.py) are for use elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdeblur.paths.library import adjoint, deconvolve, fit_paths, synthesise

__all__ = ["adjoint", "deconvolve", "fit_paths", "synthesise"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the modules of this package import each other.
    if name in __all__:
        from jaxdeblur.paths import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
