"""Compiles the programs of a restorer in a process of its own, which leaves them in the caches.

XLA's compiler allocates small blocks from many threads. A process that keeps freed memory has one
arena for all of them (``devices.keep_freed_memory``), where they wait for each other, and glibc
cannot change that number later. Another process does not wait (docs/lab/performance.md).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np

from jaxdeblur import devices
from jaxdeblur.console import tell
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import outline
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import from_json
from jaxdeblur.restoration import placement
from jaxdeblur.restoration.tiling import TileGrid
from jaxdeblur.video.pixels import PixelLayout

_ROOT = Path(__file__).parents[2]
_CODE = "from jaxdeblur.restoration.compiler import serve; serve()"


def compile_apart(
    model: VideoRestorer, height: int, width: int, layout: PixelLayout, tiles: TileGrid | None
) -> None:
    """Fills the caches with the programs of a model for a frame size, in a process of its own.

    Nothing is done where that is no faster: traces are kept already or never, freed memory is not
    kept, or the device is no CPU. If the process fails, a line says so, and the programs are
    compiled here.

    Args:
      model: the network, which ``registry.build`` can make from its config.
      height, width: of the frame, in pixels.
      layout: of the planes that come in and go out.
      tiles: the tiling of the step; None for the whole frame.
    """
    what, parameters = placement.compiled_for(model, height, width, layout, tiles, keep=True)
    traces = what.traces
    on_cpu = placement.device_of(parameters).platform == "cpu"
    if traces is None or traces.file.exists() or not (on_cpu and devices.keeps_freed_memory()):
        return
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _CODE, order_for(model, height, width, layout, tiles)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            # Signals of the terminal end this process, and its end the other's input.
            start_new_session=True,
        ) as process:
            assert process.stderr is not None
            said = process.stderr.read().strip()
        why = f"exit code {process.returncode}" if process.returncode else "other programs"
        why = said.splitlines()[-1] if process.returncode and said else why
    except OSError as error:
        why = str(error)
    if not traces.file.exists():
        tell(f"compiling in a process of its own failed ({why}), so it starts again here")


def order_for(
    model: VideoRestorer, height: int, width: int, layout: PixelLayout, tiles: TileGrid | None
) -> str:
    """Returns what ``serve`` takes, as JSON."""
    order = {
        "network": registry.network_to_json(model.config),
        "size": (height, width),
        "layout": dataclasses.asdict(layout),
        "tiles": tiles and dataclasses.astuple(tiles),
    }
    return json.dumps(order)


def serve() -> None:
    """Compiles what the first argument orders; ends when standard input does."""
    order = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_input, daemon=True).start()
    devices.keep_compiled()
    devices.use_cores(1)
    network = registry.network_from_json(order["network"], "order")
    rebuild, shapes = outline(lambda: registry.build(network))
    zeros = {name: jax.device_put(np.zeros(of.shape, of.dtype)) for name, of in shapes.items()}
    layout = from_json(PixelLayout, order["layout"], "order")
    tiles = TileGrid(*order["tiles"]) if order["tiles"] else None
    placement.step_memory(rebuild(zeros), *order["size"], layout=layout, tiles=tiles, keep=True)


def _end_with_input() -> None:
    os.read(0, 1)
    os._exit(1)
