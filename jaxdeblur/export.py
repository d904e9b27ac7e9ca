"""``python -m jaxdeblur.export RUN FILE``: see ``jaxdeblur.weights.export``."""

from __future__ import annotations

from jaxdeblur.errors import run_command
from jaxdeblur.weights.export import main

if __name__ == "__main__":
    run_command(main, "jaxdeblur.export")
