"""The networks: ``build`` makes one from its config, ``register`` adds one of your own.

``jaxdeblur/models/registry.py`` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdeblur.models.registry import build, kinds, register

__all__ = ["build", "kinds", "register"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that importing one network does not import all others.
    if name in __all__:
        from jaxdeblur.models import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
