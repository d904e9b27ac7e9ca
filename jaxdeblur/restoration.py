"""Clips and streams of any length and size, from pixels as files hold them to restored pixels.

Everything that is not the network is here once: integers to floats and back (on the device, so
that only integers cross to it), the look-ahead of a stream and its flush, and one compilation for
each frame size, kept for the life of the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8, UInt16

from jaxdeblur.errors import UserError
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.pixels import RGB8, DevicePlane, PixelLayout, Plane, layout_of
from jaxdeblur.tiling import TileGrid, halo_of, pixel_axes

Pixels: TypeAlias = UInt8[np.ndarray, "H W 3"] | UInt16[np.ndarray, "H W 3"]
"""One frame as a file holds it, 8 or 16 bits a sample."""

PixelClip: TypeAlias = UInt8[np.ndarray, "T H W 3"] | UInt16[np.ndarray, "T H W 3"]
"""All frames of a video as a file holds them."""

DevicePixels: TypeAlias = UInt8[Array, "*shape"] | UInt16[Array, "*shape"]
"""Integers on the device, any shape."""

Floats: TypeAlias = Float[np.ndarray, "*shape"] | Float[Array, "*shape"]
"""Values in [0, 1], any shape."""

Graph: TypeAlias = Any
"""A model without its parameters, as ``nnx.split`` gives it."""

Parameters: TypeAlias = Any
"""A model's parameters, as ``nnx.split`` gives them."""


def from_uint8(x: UInt8[np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to float32 in [0, 1]."""
    return _to_floats(jnp.asarray(x))


def restore_clip(model: VideoRestorer, video: PixelClip) -> PixelClip:
    """Restores a whole clip by the model's clip view, all frames at once, in the clip's own dtype.

    Device memory grows with the number of frames; ``stream`` gives the same result to one grey
    level at constant memory.
    """
    graph, state = nnx.split(model)
    return np.asarray(_restore_clip(graph, state, video))


def stream(model: VideoRestorer, frames: Iterable[Pixels]) -> Iterator[Pixels]:
    """Restores frames one by one: as many come out as went in, ``model.lookahead`` frames late.

    All frames have the size and dtype of the first one. Memory does not grow with their number.
    """
    restoration: Stream | None = None
    for frame in frames:
        if restoration is None:
            check_frame(frame)
            restoration = Stream(model, *frame.shape[:2], layout=layout_of(frame.dtype))
        restored = restoration.push(frame)
        if restored is not None:
            yield np.array(restored[0])  # the caller's own, to write into
    if restoration is not None:
        for restored in restoration.flush():
            yield np.array(restored[0])


def check_frame(frame: Any) -> None:
    """Raises :class:`UserError` if an array is no frame of packed RGB in 8 or 16 bits."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype not in ("uint8", "uint16"):
        raise UserError(f"a frame is H W 3 in uint8 or uint16, not {_described(frame)}")


def _described(plane: Any) -> str:
    return f"{' '.join(map(str, plane.shape))} in {plane.dtype}"


class Stream:
    """One video on its way through a model; results stay on the device until they are read.

    Attributes:
      pending: how many frames have gone in and not come out yet.
    """

    def __init__(
        self,
        model: VideoRestorer,
        height: int,
        width: int,
        *,
        layout: PixelLayout = RGB8,
        strength: float = 1.0,
        tiles: TileGrid | None = None,
    ):
        """Prepares the state before the first frame.

        Args:
          model: the network.
          height, width: of every frame, in pixels.
          layout: what the arrays of a frame mean; packed RGB of 8 bits by default.
          strength: 1 gives the restored frame, 0 the frame that went in, between them a mixture.
          tiles: restores each frame in these tiles, which takes less memory; None for all at once.
        """
        graph, self._parameters = nnx.split(model)
        rows = _rows_of(self._parameters, model, height, width)
        self._what = Compiled(graph, layout, tiles, rows)
        self._size = (height, width)
        self._lookahead = model.lookahead
        # Everything lives where the parameters do, so that the step runs there.
        device = _device_of(self._parameters)
        with jax.default_device(device):
            state = _initial_state(model, height, width)
        self._places: Any = device
        # Committed to their place, as what a step gives back: for anything else the first step, the
        # second and the one of ``step_memory`` would be three programs.
        self._state = jax.device_put(state, device if rows is None else rows.of_state(state))
        self._strength = jax.device_put(
            jnp.float32(strength), device if rows is None else rows.everywhere
        )
        # The frames whose results are due: what changes is added to them.
        self._waiting: deque[tuple[DevicePlane, ...]] = deque()
        self._steps = 0
        self._ended = False
        self.pending = 0

    def push(self, planes: tuple[Plane, ...] | Plane) -> tuple[DevicePlane, ...] | None:
        """Takes one frame in; gives the one of ``lookahead`` frames ago, or None at the start.

        Returns as soon as the work is queued; reading the result waits for it.

        Args:
          planes: the frame's arrays, as the stream's layout says; one alone, as of packed RGB, may
            be given without a tuple.

        Returns:
          A tuple of as many arrays, on the device, whichever way the frame was given.

        Raises:
          UserError: the frame's arrays are not those of the stream's layout and size.
          ValueError: the stream was flushed.
        """
        if isinstance(planes, (np.ndarray, jax.Array)):
            planes = (planes,)
        layout = self._what.layout
        shapes = layout.plane_shapes(*self._size)
        dtypes = {plane.dtype for plane in planes}
        if [plane.shape for plane in planes] != shapes or dtypes != {layout.dtype}:
            right = ", ".join(" ".join(map(str, shape)) for shape in shapes)
            given = ", ".join(_described(plane) for plane in planes[:3])
            given += f" and {len(planes) - 3} more" if len(planes) > 3 else ""
            raise UserError(f"a frame of this stream is {right} in {layout.dtype}, not {given}")
        # Copied, since on a CPU the device may use the caller's memory, and a camera its own again.
        rows = self._what.rows
        places = self._places if rows is None else tuple(map(rows.of_plane, planes))
        on_device = jax.device_put(tuple(map(np.array, planes)), places)
        if self._ended:
            raise ValueError("the stream was flushed; begin another one")
        self._waiting.append(on_device)
        self.pending += 1
        return self._advance(on_device, repeated=False)

    def flush(self) -> Iterator[tuple[DevicePlane, ...]]:
        """Gives the frames that are still pending; the last frame is repeated as look-ahead.

        No frame can follow.
        """
        if not self.pending:
            return
        self._ended = True
        last = self._waiting[-1]
        while self.pending:
            restored = self._advance(last, repeated=True)
            if restored is not None:
                yield restored

    def _advance(
        self, planes: tuple[DevicePlane, ...], *, repeated: bool
    ) -> tuple[DevicePlane, ...] | None:
        self._steps += 1
        self._state, restored = _step(
            self._what,
            self._parameters,
            self._state,
            planes,
            repeated,
            self._waiting[0],
            self._strength,
        )
        if self._steps <= self._lookahead:
            return None
        self._waiting.popleft()
        self.pending -= 1
        return restored


def over_rows(model: VideoRestorer, devices: Sequence[jax.Device]) -> VideoRestorer:
    """The same model on several devices, which share the rows of each frame between them.

    For frames too large for one device: a :class:`Stream` of the result keeps on each device only
    its rows of frames, features and state. The compiler lets them exchange the rows at their
    borders that convolutions read.
    """
    # The axes of a mesh to train over, which the kernels of a network are told (``spread_over``).
    axis_types = AxisType.Auto, AxisType.Auto
    mesh = Mesh(np.array(devices)[None], ("data", "rows"), axis_types=axis_types)
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))


@dataclasses.dataclass(frozen=True)
class Rows:
    """How arrays are shared out by rows over the devices of ``mesh``."""

    mesh: Mesh
    axes: tuple[int | None, ...]
    """For each array of the state, which of its dimensions are the frame's rows."""

    @property
    def everywhere(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of_plane(self, plane: Plane) -> NamedSharding:
        """A plane ``H W ...`` by its rows, if they divide."""
        return self._along(0, plane.shape)

    def of_state(self, state: State) -> Any:
        """The sharding of each array of the state, as a tree like it."""
        leaves, tree = jax.tree.flatten(state)
        pairs = zip(self.axes, leaves, strict=True)
        return jax.tree.unflatten(tree, [self._along(axis, leaf.shape) for axis, leaf in pairs])

    def _along(self, axis: int | None, shape: tuple[int, ...]) -> NamedSharding:
        if axis is None or shape[axis] % self.mesh.size:
            return self.everywhere
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "rows"))


def _rows_of(parameters: Parameters, model: VideoRestorer, height: int, width: int) -> Rows | None:
    """How frames are shared out if ``over_rows`` made the model, else None."""
    leaves = jax.tree.leaves(parameters)
    sharding = leaves[0].sharding if leaves else None
    if not isinstance(sharding, NamedSharding):
        return None
    mesh = cast(Mesh, sharding.mesh)
    if mesh.axis_names != ("data", "rows") or mesh.shape["data"] > 1:
        return None
    if height % mesh.size:
        raise UserError(f"--rows={mesh.size} does not divide the {height} rows of a frame")
    size = model._round_up(height), model._round_up(width)
    state = jax.eval_shape(lambda: model.initial_state(1, height, width))
    axes = pixel_axes(model, state, *size)
    return Rows(mesh, tuple(None if pair is None else pair[0].dimension for pair in axes))


def choose_tiles(
    model: VideoRestorer,
    height: int,
    width: int,
    *,
    layout: PixelLayout = RGB8,
    budget: int | None = None,
) -> TileGrid | None:
    """The largest tiles with which a step fits into memory; None if the whole frame does.

    The memory is what the compiler says that the compiled step takes.

    Args:
      budget: bytes to stay within; by default 0.8 of what is free on the model's device, so that
        the convolutions' scratch space, which the compiler does not count, fits too.

    Raises:
      UserError: not even the smallest useful tiles fit.
    """
    if budget is None:
        budget = int(0.8 * free_memory(_device_of(nnx.state(model))))
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
        f"a frame of {width}x{height} takes {needed / 2**30:.1f} GiB at once and does not fit into "
        f"{budget / 2**30:.1f} GiB in tiles either; use a smaller model or frame"
    )


def step_memory(
    model: VideoRestorer,
    height: int,
    width: int,
    *,
    layout: PixelLayout = RGB8,
    tiles: TileGrid | None = None,
) -> int:
    """Bytes that one step of the stream takes on the device: state, frames and intermediates."""
    graph, parameters = nnx.split(model)
    place = SingleDeviceSharding(_device_of(parameters))

    def here(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    state = jax.tree.map(
        lambda leaf: here(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda: model.initial_state(1, height, width)),
    )
    planes = tuple(here(shape, layout.dtype) for shape in layout.plane_shapes(height, width))
    strength = here((), jnp.float32)
    what = Compiled(graph, layout, tiles, None)
    lowered = _step.lower(what, parameters, state, planes, False, planes, strength)
    # A stream's calls of _step with these shapes use what is compiled here.
    memory: Any = lowered.compile().memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def free_memory(device: jax.Device) -> int:
    """Bytes that are free on ``device``; for the CPU, what the system can still give."""
    stats = device.memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":") for line in lines)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux: half of what the machine has
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with contextlib.suppress(OSError, ValueError):  # no limit on this container
        free = min(free, _free_in_cgroup(Path("/sys/fs/cgroup")))
    return free


def _free_in_cgroup(folder: Path) -> int:
    """Bytes below a container's limit; what it keeps of files that were read counts as free."""
    limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
    stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return limit - used + int(stats["inactive_file"])


class Compiled(NamedTuple):
    """What a step is compiled for, beside the size of the frame."""

    graph: Graph
    layout: PixelLayout
    tiles: TileGrid | None
    rows: Rows | None


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(
    what: Compiled,
    parameters: Parameters,
    state: State,
    planes: tuple[DevicePlane, ...],
    repeated: bool | Bool[Array, ""],
    due: tuple[DevicePlane, ...],
    strength: Float[Array, ""],
) -> tuple[State, tuple[DevicePlane, ...]]:
    model: VideoRestorer = nnx.merge(what.graph, parameters)
    if what.rows is not None:
        model.spread_over(what.rows.mesh)
    step = model.step if what.tiles is None else functools.partial(what.tiles.step, model)
    state, restored = step(state, what.layout.to_rgb(planes)[None], repeated)
    if what.rows is not None:  # the next step takes the state as this one did
        state = jax.lax.with_sharding_constraint(state, what.rows.of_state(state))
    change = jnp.clip(restored[0], 0, 1) - what.layout.to_rgb(due)
    return state, what.layout.add(due, strength * change)


@functools.partial(jax.jit, static_argnums=0)
def _restore_clip(graph: Graph, parameters: Parameters, video: DevicePixels) -> DevicePixels:
    model: VideoRestorer = nnx.merge(graph, parameters)
    return _to_integers(model.restore_clip(_to_floats(video)[None])[0], video.dtype)


def _to_floats(x: DevicePixels) -> Float[Array, "*shape"]:
    return x.astype(jnp.float32) / jnp.iinfo(x.dtype).max


def _to_integers(x: Floats, dtype: DTypeLike) -> DevicePixels:
    return jnp.round(jnp.clip(x, 0, 1) * jnp.iinfo(dtype).max).astype(dtype)


def _initial_state(model: VideoRestorer, height: int, width: int) -> State:
    state = model.initial_state(1, height, width)
    # Copied, since a model may use one array of zeros twice and the state's memory is reused.
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def _device_of(parameters: Parameters) -> jax.Device:
    leaves = jax.tree.leaves(parameters)
    return next(iter(leaves[0].devices())) if leaves else jax.devices()[0]
