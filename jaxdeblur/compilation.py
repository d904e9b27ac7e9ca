"""Keeps compiled programs between starts, so that a second start of a command is quick."""

from __future__ import annotations

import contextlib
import os

import jax

from jaxdeblur.data.scenes import cache_folder
from jaxdeblur.errors import UserError


def keep_compiled() -> None:
    """Turns JAX's compilation cache on, unless the environment already says where it is.

    Without a place for it, as where there is no home folder, every start compiles.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(UserError):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
