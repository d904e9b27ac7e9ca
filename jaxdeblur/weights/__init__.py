"""Trained weights: those that ship, as safetensors files beside this one, loading and saving.

``from jaxdeblur.weights import load_model`` loads a run folder, a file or what ships.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdeblur.weights.load import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: what ships can be listed without JAX.
    if name in __all__:
        from jaxdeblur.weights import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
