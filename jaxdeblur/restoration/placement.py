"""Compiled steps of a stream, over the whole frame or in tiles.

Which of the two a frame needs depends on the memory that the compiler reports for a step.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Bool, Float

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.paths.light import Excess
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.paths.self_ensemble import StepOf
from jaxdeblur.paths.windows import Fitted, OverPaths
from jaxdeblur.restoration.tiling import TileGrid, halo_of
from jaxdeblur.shapes import DevicePlane, Frame
from jaxdeblur.video.pixels import RGB8, PixelLayout


class Compiled(NamedTuple):
    """What a step is compiled for, besides the frame size."""

    graph: nnx.GraphDef[Any]
    layout: PixelLayout
    tiles: TileGrid | None

    @property
    def step_of(self) -> StepOf:
        """The function that steps a network, over the whole frame or in tiles."""
        return VideoRestorer.step if self.tiles is None else self.tiles.step


_program = functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
"""Compiles a function of a ``Compiled``, a model's parameters, a state to be reused, and more."""


@_program
def stream_step(
    what: Compiled,
    parameters: nnx.State,
    state: State,
    planes: tuple[DevicePlane, ...],
    repeated: bool | Bool[Array, ""],
    due: tuple[DevicePlane, ...],
    strength: Float[Array, ""],
) -> tuple[State, tuple[DevicePlane, ...]]:
    """Runs a step of a network without blur paths.

    Args:
      what: what the program is compiled for.
      parameters: of the model.
      state: of the model; its memory is reused.
      planes, repeated, due, strength: as for ``step_with``.
    """
    model: VideoRestorer = nnx.merge(what.graph, parameters)
    state, restored = what.step_of(model, state, what.layout.to_rgb(planes)[None], repeated)
    return state, _changed(what.layout, due, restored, strength)


@_program
def base_step(
    what: Compiled,
    parameters: nnx.State,
    state: State,
    planes: tuple[DevicePlane, ...],
    repeated: bool | Bool[Array, ""],
) -> tuple[State, Frame]:
    """Runs the first part of a step of blur paths: their base.

    Args:
      what: what the program is compiled for.
      parameters: of the model.
      state: of this part; its memory is reused.
      planes: the frame that comes in, as its file holds it.
      repeated: whether it is the last frame, given once more.
    """
    model: PathRestorer = nnx.merge(what.graph, parameters)
    frame = model.pad(what.layout.to_rgb(planes)[None])
    return model.step_base(what.step_of, state, frame, repeated)


@_program
def fit_step(
    what: Compiled,
    parameters: nnx.State,
    state: State,
    planes: tuple[DevicePlane, ...],
    repeated: bool | Bool[Array, ""],
) -> tuple[State, Fitted]:
    """Runs the second part: the fit of the paths.

    Args:
      what: what the program is compiled for.
      parameters: of the model.
      state: of this part; its memory is reused.
      planes, repeated: as for ``base_step``.
    """
    model: PathRestorer = nnx.merge(what.graph, parameters)
    frame = model.pad(what.layout.to_rgb(planes)[None])
    return model.step_fit(state, frame, repeated)


@_program
def light_step(
    what: Compiled,
    parameters: nnx.State,
    state: State,
    fitted: Fitted,
    below: Float[Array, "1 Hp Wp 3"] | None,
) -> tuple[State, Excess | None]:
    """Runs the third part: what linear light added, by paths and base.

    Args:
      what: what the program is compiled for.
      parameters: of the model.
      state: of this part; its memory is reused.
      fitted: from ``fit_step``.
      below: the frame restored by the base; None without one.
    """
    model: PathRestorer = nnx.merge(what.graph, parameters)
    return model.step_light(state, fitted, below)


@_program
def filter_step(
    what: Compiled,
    parameters: nnx.State,
    state: State,
    fitted: Fitted,
    below: Float[Array, "1 Hp Wp 3"] | None,
    excess: Excess | None,
) -> tuple[State, OverPaths]:
    """Runs the fourth part: the filter along the paths, on what the base made of the frame.

    Args:
      what: what the program is compiled for.
      parameters: of the model.
      state: of this part; its memory is reused.
      fitted, below: as for ``light_step``.
      excess: from ``light_step``.
    """
    model: PathRestorer = nnx.merge(what.graph, parameters)
    return model.step_filter(state, fitted, below, excess)


@_program
def fusion_step(
    what: Compiled,
    parameters: nnx.State,
    state: State,
    over: OverPaths,
    due: tuple[DevicePlane, ...],
    strength: Float[Array, ""],
) -> tuple[State, tuple[DevicePlane, ...]]:
    """Runs the last part: the network over the paths.

    Args:
      what: what the program is compiled for.
      parameters: of the model.
      state: of this part; its memory is reused.
      over: from ``filter_step``.
      due: the frame that comes out, to which the network's change is added.
      strength: the share of the change that is added.
    """
    model: PathRestorer = nnx.merge(what.graph, parameters)
    state, restored = model.step_fusion(what.step_of, state, over)
    return state, _changed(what.layout, due, restored, strength)


# On a CPU, programs that one thread queues run in sequence. So each part has a thread that queues
# it (the fit, that of the caller), and parts of several frames run side by side.
_THREADS = {
    part: ThreadPoolExecutor(1) for part in (base_step, light_step, filter_step, fusion_step)
}


def queue(program: Any, *given: Any) -> Any:
    """Queues a program on the device, from a thread of its own if it has one."""
    if program in _THREADS:
        return _THREADS[program].submit(program, *given).result()
    return program(*given)


def step_with(
    run: Callable[..., Any],
    model: VideoRestorer,
    what: Compiled,
    parameters: nnx.State,
    state: State,
    planes: Any,
    due: Any,
    strength: Any,
    *,
    repeated: bool,
) -> tuple[State, Any]:
    """Takes one frame in and returns the one that is due, as arrays in the layout of their file.

    A ``run`` that only compiles takes and returns ``ShapeDtypeStruct`` in place of arrays.

    Args:
      run: runs a program: ``queue``, or what only compiles it.
      model: the network.
      what: what its step is compiled for.
      parameters, state: of the model; the state's memory is reused.
      planes: the frame that comes in.
      due: the frame that comes out, to which the network's change is added.
      strength: the share of the change that is added.
      repeated: whether ``planes`` is the last frame, given once more.
    """
    given = what, parameters
    if not isinstance(model, PathRestorer):
        return run(stream_step, *given, state, planes, repeated, due, strength)
    base, below = state.base, None
    if model.base is not None:
        base, below = run(base_step, *given, base, planes, repeated)
    after, fitted = run(fit_step, *given, state.of_fit(), planes, repeated)
    light, excess = run(light_step, *given, state.light, fitted, below)
    last, over = run(filter_step, *given, state.filter, fitted, below, excess)
    fusion, restored = run(fusion_step, *given, state.fusion, over, due, strength)
    return after._replace(base=base, light=light, filter=last, fusion=fusion), restored


def _changed(
    layout: PixelLayout,
    due: tuple[DevicePlane, ...],
    restored: Float[Array, "1 Hp Wp 3"],
    strength: Float[Array, ""],
) -> tuple[DevicePlane, ...]:
    """Adds the network's change to the frame that is due."""
    shown = layout.to_rgb(due)
    height, width, _ = shown.shape
    return layout.add(due, strength * (jnp.clip(restored[0, :height, :width], 0, 1) - shown))


def choose_tiles(
    model: VideoRestorer,
    height: int,
    width: int,
    *,
    layout: PixelLayout = RGB8,
    budget: int | None = None,
) -> TileGrid | None:
    """Returns the largest tiles with which a step fits into memory; None if the whole frame fits.

    The memory is what the compiler reports for the compiled step.

    Args:
      model: the network.
      height, width: of the frame, in pixels.
      layout: of the planes that come in and go out.
      budget: limit in bytes; by default 0.8 of the free memory on the model's device, so that the
        convolutions' scratch space, which the compiler does not count, fits too.

    Raises:
      UserError: not even the smallest useful tiles fit.
    """
    if budget is None:
        budget = int(0.8 * free_memory(device_of(nnx.state(model))))
    needed = step_memory(model, height, width, layout=layout)
    if needed <= budget:
        return None
    halo, per_pixel = halo_of(model), needed / (height * width)
    tile = [height, width]
    # Tiles smaller than their halo would compute each pixel more than nine times.
    while max(tile) >= 2 * max(halo, 8):
        tile[tile.index(max(tile))] //= 2
        # Compiling takes seconds, so only sizes that should fit are tried.
        if per_pixel * (tile[0] + 2 * halo) * (tile[1] + 2 * halo) > budget:
            continue
        grid = TileGrid(*tile)
        if step_memory(model, height, width, layout=layout, tiles=grid) <= budget:
            return grid
    raise UserError(
        f"a frame of {width}x{height} needs {needed / 2**30:.1f} GiB and does not fit into "
        f"{budget / 2**30:.1f} GiB even in tiles; use a smaller model or frame"
    )


def step_memory(
    model: VideoRestorer,
    height: int,
    width: int,
    *,
    layout: PixelLayout = RGB8,
    tiles: TileGrid | None = None,
) -> int:
    """Returns the bytes that one stream step takes on the device: state, frames, intermediates.

    Args:
      model: the network.
      height, width: of the frame, in pixels.
      layout: of the planes that come in and go out.
      tiles: the tiling of the step; None for the whole frame.
    """
    graph, parameters = nnx.split(model)
    place = SingleDeviceSharding(device_of(parameters))
    placed = functools.partial(jax.tree.map, lambda array: devices.abstract_array(array, place))

    def inputs() -> tuple[State, tuple[DevicePlane, ...], Float[Array, ""]]:
        shapes = layout.plane_shapes(height, width)
        planes = tuple(jnp.zeros(shape, layout.dtype) for shape in shapes)
        return model.initial_state(1, height, width), planes, jnp.float32(1)

    state, planes, strength = placed(jax.eval_shape(inputs))
    lowered: list[Any] = []

    def lower(program: Any, *given: Any) -> Any:
        lowered.append(program.lower(*given))
        return placed(lowered[-1].out_info)

    what = Compiled(graph, layout, tiles)
    step_with(lower, model, what, parameters, state, planes, planes, strength, repeated=False)
    # A stream with these shapes reuses what is compiled here.
    taken: list[Any] = [each.compile().memory_analysis() for each in lowered]
    return sum(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
        for memory in taken
    )


def free_memory(device: jax.Device, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the free bytes on ``device``; for a CPU, those of the system or its container."""
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux: half of the machine's memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        pages = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # The cache of files that were read counts as free.
        free = min(free, limit - used + int(pages["inactive_file"]))
    return free


def device_of(parameters: nnx.State) -> jax.Device:
    """Returns the device of a model's parameters; this process's first for a model without any."""
    leaves = jax.tree.leaves(parameters)
    return next(iter(leaves[0].devices())) if leaves else jax.local_devices()[0]
