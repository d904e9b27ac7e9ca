"""Keeps compiled programs between starts, so that a second start of a command is quick."""

from __future__ import annotations

import os

import jax

from jaxdeblur.data.scenes import cache_folder


def keep_compiled() -> None:
    """Turns JAX's compilation cache on, unless the environment already says where it is."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
