"""The parts of a restorer as compiled programs, over the whole frame or in tiles.

Which of the two a frame needs depends on the memory that the compiler reports for a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
from flax import nnx
from jax import lax
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.parts import (
    FRAME,
    REPEATED,
    RESTORED,
    Part,
    States,
    run_parts,
    start_parts,
)
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.restoration.tiling import TileGrid
from jaxdeblur.restoration.traces import Traces, traces_of
from jaxdeblur.shapes import DevicePlane
from jaxdeblur.video.pixels import RGB8, PixelLayout


class Compiled(NamedTuple):
    """What the programs of a stream are compiled for, besides the frame size."""

    graph: nnx.GraphDef[Any]
    layout: PixelLayout
    tiles: TileGrid | None
    traces: Traces | None = None
    """Those of its programs, if they are kept."""

    def parts(self, model: VideoRestorer) -> list[Part]:
        """Returns the model's parts, whose networks run on the whole frame or in tiles."""
        return model.parts(None if self.tiles is None else self.tiles.step)


class Incoming(NamedTuple):
    """A frame that comes in."""

    planes: tuple[DevicePlane, ...]
    """As its file holds it."""
    gain: Float[Array, ""]
    """What its values are multiplied by for the restorer (timeline.py)."""
    inside: Int[Array, 4]
    """The rows and columns between bars, first and last of each: the restorer sees the picture
    mirrored in place of bars, whose edges stand still before whatever moves."""


class Due(NamedTuple):
    """The frame that comes out."""

    frame: Incoming
    """As it came in; the restorer's change is added to it."""
    strength: Float[Array, ""]
    """The share of the change that is added."""


def _options(whole: bool) -> dict[str, Any]:
    """Returns how XLA compiles a part on a CPU; ``whole`` is the part's."""
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return {}
    # LLVM's level 2 in place of 3: programs compile and run a tenth faster.
    options: dict[str, Any] = {"xla_backend_optimization_level": 2}
    if whole and jaxlib.__version__.startswith("0.10."):
        # XLA's older code for fused loops compiles in two thirds of the time. Networks run a tenth
        # slower with it, other parts as fast. jaxlib 0.12 no longer has it.
        options["xla_cpu_use_fusion_emitters"] = False
    return options


@functools.cache
def program(name: str, whole: bool) -> Any:
    """Returns the compiled step of the parts of a name, which run no network if ``whole``.

    It takes a ``Compiled``, the model's parameters, the part's state, whose memory is reused, what
    the part takes (a frame as ``Incoming``), and for the last part a ``Due``, else None.
    It returns the new state and the result, of the last part as planes.
    """

    def step(
        what: Compiled, parameters: nnx.State, state: State, given: tuple[Any, ...], due: Due | None
    ) -> tuple[State, Any]:
        if what.traces is None:
            return _step(name, what, parameters, state, given, due)
        state, made = what.traces.call(name, parameters, state, given, due)
        return state, made if due is None else tuple(made)

    step.__name__ = step.__qualname__ = name
    return jax.jit(step, static_argnums=0, donate_argnums=2, compiler_options=_options(whole))


def _step(
    name: str,
    what: Compiled,
    parameters: nnx.State,
    state: State,
    given: tuple[Any, ...],
    due: Due | None,
) -> tuple[State, Any]:
    model: VideoRestorer = nnx.merge(what.graph, parameters)
    (part,) = (part for part in what.parts(model) if part.name == name)
    taken = [
        model.pad(_brought(what.layout, each)[None]) if kind == FRAME else each
        for kind, each in zip(part.takes, given, strict=True)
    ]
    state, made = part.step(state, *taken)
    return state, made if due is None else _changed(what.layout, due, made)


# On a CPU, programs that one thread queues run in sequence. So each part has a thread that queues
# it, and parts of several frames run side by side.
@functools.cache
def _thread(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, f"part {name}")


def queue(part: Part, *given: Any) -> Any:
    """Queues the program of a part on the device, from the part's own thread."""
    return _thread(part.name).submit(program(part.name, part.whole), *given).result()


def frame_through(
    run: Callable[..., Any],
    parts: list[Part],
    what: Compiled,
    parameters: nnx.State,
    states: States,
    frame: Any,
    due: Due | None,
    *,
    repeated: bool,
) -> tuple[States, Any]:
    """Passes a frame through programs; returns the new states and the frame that is due.

    A ``run`` that only compiles takes and returns ``ShapeDtypeStruct`` in place of arrays.

    Args:
      run: runs a program, given its part and what it takes: ``queue``, or what only compiles it.
      parts: of the model, all or only those that look at the opening.
      what: what they are compiled for.
      parameters: of the model.
      states: of the parts; their memory is reused.
      frame: that comes in.
      due: the frame that comes out; None if none does.
      repeated: whether ``frame`` is the last one, given once more.
    """

    def run_part(part: Part, state: State, *given: Any) -> tuple[State, Any]:
        # Without the tiles, another size of tiles finds the program that is there.
        by = what._replace(tiles=None) if part.whole else what
        return run(part, by, parameters, state, given, due if part.gives == RESTORED else None)

    states, made = run_parts(parts, run_part, states, {FRAME: frame, REPEATED: repeated})
    return states, made.get(RESTORED)


def _changed(
    layout: PixelLayout, due: Due, restored: Float[Array, "1 Hp Wp 3"]
) -> tuple[DevicePlane, ...]:
    """Adds the restorer's change to the frame that is due."""
    shown = _brought(layout, due.frame)
    height, width, _ = shown.shape
    change = jnp.clip(restored[0, :height, :width], 0, 1) - shown
    rows, columns = due.frame.inside.reshape(2, 2)
    of_picture = _between(rows, height)[:, None] & _between(columns, width)
    change = change * of_picture[..., None]
    return layout.add(due.frame.planes, due.strength / due.frame.gain * change)


def _brought(layout: PixelLayout, frame: Incoming) -> Float[Array, "H W 3"]:
    """Returns a frame as RGB at the brightness of its scene, without bars."""
    # What is brighter than white counts as white. So a highlight that the restorer leaves does not
    # change; in a frame that was brightened, it would otherwise come back grey.
    image = jnp.minimum(frame.gain * layout.to_rgb(frame.planes), 1.0)
    height, width, _ = image.shape
    whole = jnp.all(frame.inside == jnp.array([0, height - 1, 0, width - 1]))

    def mirrored() -> Float[Array, "H W 3"]:
        rows, columns = frame.inside.reshape(2, 2)
        return image[_reflected(rows, height)][:, _reflected(columns, width)]

    filled: Float[Array, "H W 3"] = lax.cond(whole, lambda: image, mirrored)
    return filled


def _between(ends: Int[Array, 2], size: int) -> Bool[Array, " n"]:
    at = jnp.arange(size)
    return (at >= ends[0]) & (at <= ends[1])


def _reflected(ends: Int[Array, 2], size: int) -> Int[Array, " n"]:
    """Returns the row or column that is seen in place of each, mirrored at both ends."""
    at, count = jnp.arange(size) - ends[0], ends[1] - ends[0] + 1
    turn = at % (2 * count)
    return ends[0] + jnp.minimum(turn, 2 * count - 1 - turn)


def choose_tiles(
    model: VideoRestorer,
    height: int,
    width: int,
    *,
    layout: PixelLayout = RGB8,
    budget: int | None = None,
    keep: bool = False,
) -> TileGrid | None:
    """Returns the largest tiles with which a step fits into memory; None if the whole frame fits.

    The memory is what the compiler reports for the compiled step.

    Args:
      model: the network.
      height, width: of the frame, in pixels.
      layout: of the planes that come in and go out.
      budget: limit in bytes; by default 0.8 of the free memory on the model's device, so that the
        convolutions' scratch space, which the compiler does not count, fits too.
      keep: whether traces are kept for the next start.

    Raises:
      UserError: not even the smallest useful tiles fit.
    """
    if budget is None:
        budget = int(0.8 * free_memory(device_of(nnx.state(model))))
    needed = step_memory(model, height, width, layout=layout, keep=keep)
    if needed > budget / 2 and device_of(nnx.state(model)).platform == "cpu":
        devices.save_memory()
    if needed <= budget:
        return None
    halo, per_pixel = model.halo, needed / (height * width)
    tile = [height, width]
    # Tiles smaller than their halo would compute each pixel more than nine times.
    while max(tile) >= 2 * max(halo, 8):
        tile[tile.index(max(tile))] //= 2
        # Compiling takes seconds, so only sizes that should fit are tried.
        if per_pixel * (tile[0] + 2 * halo) * (tile[1] + 2 * halo) > budget:
            continue
        grid = TileGrid(*tile)
        if step_memory(model, height, width, layout=layout, tiles=grid, keep=keep) <= budget:
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
    keep: bool = False,
) -> int:
    """Returns the bytes that one stream step takes on the device: state, frames, intermediates.

    Args:
      model: the network.
      height, width: of the frame, in pixels.
      layout: of the planes that come in and go out.
      tiles: the tiling of the step; None for the whole frame.
      keep: whether traces are kept for the next start.
    """
    what, parameters = compiled_for(model, height, width, layout, tiles, keep=keep)
    place = SingleDeviceSharding(device_of(parameters))
    placed = functools.partial(jax.tree.map, lambda array: devices.abstract_array(array, place))
    parts, traces = {part.name: part for part in what.parts(model)}, what.traces

    def inputs() -> tuple[States, Due]:
        planes = tuple(
            jnp.zeros(shape, layout.dtype) for shape in layout.plane_shapes(height, width)
        )
        frame = Incoming(planes, jnp.float32(1), jnp.zeros(4, jnp.int32))
        return stream_states(model, parts.values(), height, width), Due(frame, jnp.float32(1))

    states, due = placed(jax.eval_shape(inputs))
    known = traces is not None and traces.read(parts)

    def compile_all(threads: ThreadPoolExecutor) -> list[Future[Any]]:
        compiled: list[Future[Any]] = []

        def lower(
            part: Part, what: Compiled, parameters: Any, state: Any, given: Any, due: Any
        ) -> Any:
            name = part.name
            new = traces is not None and not known
            if traces is not None:
                if new:
                    step = functools.partial(_step, name, what)
                    _, made = traces.add(name, step, (parameters, state, given, due))
                given = tuple(
                    each if kind in (FRAME, REPEATED) else jax.tree.leaves(each)
                    for kind, each in zip(part.takes, given, strict=True)
                )
            lowered = program(name, part.whole).lower(what, parameters, state, given, due)
            compiled.append(threads.submit(lowered.compile))
            state, result = lowered.out_info
            # The part after it is traced with the result itself, but run with its arrays.
            return placed((state, made if new else result))

        given = what, parameters, states, due.frame, due
        frame_through(lower, list(parts.values()), *given, repeated=False)
        return compiled

    # The compiler does not hold the interpreter's lock: while it works, the next part is traced. It
    # uses about two cores by itself; several at once contend for the allocator: on two cores, two
    # at once take as long as one after the other, and a tenth more processor time.
    with ThreadPoolExecutor(max(1, devices.cores() // 2)) as threads:
        try:
            compiled = compile_all(threads)
        except Exception:
            if not known:
                raise
            known = False  # The traces of another program: they are made again.
            compiled = compile_all(threads)
        if traces is not None and not known:
            traces.write()
        # A stream with these shapes reuses what is compiled here.
        taken: list[Any] = [each.result().memory_analysis() for each in compiled]
    return sum(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
        for memory in taken
    )


def compiled_for(
    model: VideoRestorer,
    height: int,
    width: int,
    layout: PixelLayout,
    tiles: TileGrid | None,
    *,
    keep: bool,
) -> tuple[Compiled, nnx.State]:
    """Returns what a model's programs are compiled for, and its parameters.

    Args:
      model: the network.
      height, width: of the frame, in pixels.
      layout: of the planes that come in and go out.
      tiles: the tiling of the step; None for the whole frame.
      keep: whether traces are kept for the next start.
    """
    graph, parameters = nnx.split(model)
    what = height, width, layout, tiles
    traces = traces_of(model, device_of(parameters), *what) if keep else None
    return Compiled(graph, layout, tiles, traces), parameters


@functools.partial(jax.jit, static_argnums=(0, 1))
def started(what: Compiled, size: tuple[int, int], parameters: nnx.State) -> States:
    """Returns the states of all parts before the first frame.

    As one program: compiling one for each array takes a second. It gives each its own memory.

    Args:
      what: what the model's programs are compiled for.
      size: height and width of the frame, in pixels.
      parameters: of the model.
    """
    model: VideoRestorer = nnx.merge(what.graph, parameters)
    states = stream_states(model, what.parts(model), *size)
    # Of the types that a step returns: a weak type would be another program.
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), states)


def stream_states(model: VideoRestorer, parts: Iterable[Part], height: int, width: int) -> States:
    """Returns the states of parts before the first frame of a video of ``height x width``."""
    return start_parts(parts, 1, model.round_up(height), model.round_up(width))


def free_memory(device: jax.Device) -> int:
    """Returns the free bytes on ``device``; for a CPU, those of the system or its container."""
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return devices.free_memory()


def device_of(parameters: nnx.State) -> jax.Device:
    """Returns the device of a model's parameters; this process's first for a model without any."""
    leaves = jax.tree.leaves(parameters)
    return next(iter(leaves[0].devices())) if leaves else jax.local_devices()[0]
