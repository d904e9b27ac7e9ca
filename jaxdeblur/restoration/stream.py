"""Clips and streams of any length and size, from pixels as files hold them to restored pixels.

This module has everything except the network: conversion between integers and floats (on the
device, so that only integers are transferred), a stream's look-ahead and flush, and one compilation
for each frame size, kept for the life of the process.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxdeblur.errors import UserError
from jaxdeblur.models.parts import States, learnt, looking
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.restoration.placement import (
    Compiled,
    Due,
    device_of,
    frame_through,
    queue,
    stream_states,
)
from jaxdeblur.restoration.tiling import TileGrid
from jaxdeblur.shapes import DevicePlane, PixelClip, Pixels, Plane
from jaxdeblur.video.pixels import RGB8, PixelLayout, layout_of


def restore_clip(model: VideoRestorer, video: PixelClip) -> PixelClip:
    """Restores all frames of a clip at once with the model's clip view; keeps the clip's dtype.

    Device memory grows with the number of frames; ``restore_frames`` gives the same result to
    within one grey level in constant memory.
    """
    graph, state = nnx.split(model)
    return np.asarray(_restore_clip(graph, state, video))


def restore_frames(
    open_stream: Callable[[int, int, PixelLayout], Stream], frames: Iterable[Pixels]
) -> Iterator[Pixels]:
    """Restores frames as they arrive; as many come out as went in, the model's look-ahead later.

    They are ``H W 3``, RGB, uint8 or uint16, all of one size, as are the results, which the caller
    may write into. ``open_stream`` gets the height, width and layout of the first. Memory does not
    grow with their number.

    Raises:
      UserError: a frame is no such array, or unlike the first.
    """
    rest = map(_checked, frames)
    for first in itertools.islice(rest, 1):
        height, width, _ = first.shape
        stream = open_stream(height, width, layout_of(first.dtype))
        for restored in stream.restore(itertools.chain([first], rest)):
            yield np.array(restored[0])


def _checked(frame: Any) -> Pixels:
    right = isinstance(frame, np.ndarray | jax.Array) and frame.ndim == 3 and frame.shape[2] == 3
    if not right or frame.dtype not in ("uint8", "uint16"):
        raise UserError(
            f"a frame must be an array H W 3 in uint8 or uint16, not {described(frame)}"
        )
    return frame


def described(given: Any) -> str:
    """Describes the wrong argument, for an error message."""
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return f"{' '.join(map(str, given.shape))} in {given.dtype}"
    return type(given).__name__


class Stream:
    """Restores one video frame by frame; results remain on the device until they are read.

    Attributes:
      opening: how many frames ``look`` should see before the first is pushed.
    """

    def __init__(
        self,
        model: VideoRestorer,
        height: int,
        width: int,
        layout: PixelLayout = RGB8,
        *,
        strength: float = 1.0,
        tiles: TileGrid | None = None,
    ):
        """Prepares the state before the first frame.

        Args:
          model: the network.
          height, width: of every frame, in pixels.
          layout: pixel layout of a frame's arrays; packed 8-bit RGB by default.
          strength: 1 gives the restored frame, 0 the input, values between them a mixture.
          tiles: tiling of each frame, which takes less memory; None for the whole frame at once.
        """
        graph, self._parameters = nnx.split(model)
        self._what = Compiled(graph, layout, tiles)
        self._parts = self._what.parts(model)
        self._size = (height, width)
        self.opening = model.opening
        self._model = model
        # All arrays are placed on the parameters' device, so that the step runs there.
        self._device = device_of(self._parameters)
        with jax.default_device(self._device):
            # Copied, since a model may use one array of zeros twice and steps reuse this memory.
            states = jax.tree.map(jnp.copy, stream_states(model, self._parts, height, width))
        self._states = self._placed(states)
        self._strength = jax.device_put(jnp.float32(strength), self._device)
        # Frames that have gone in and not come out yet; the network's change is added to them.
        self._waiting: deque[tuple[DevicePlane, ...]] = deque()
        self._steps = 0
        self._ended = False

    def restore(
        self, frames: Iterable[tuple[Plane, ...] | Plane]
    ) -> Iterator[tuple[DevicePlane, ...]]:
        """Restores a whole video: looks at its opening, pushes all frames and flushes."""
        rest = iter(frames)
        # Copied, since the caller may reuse their memory.
        opening = [
            jax.tree.map(np.array, planes) for planes in itertools.islice(rest, self.opening)
        ]
        self.look(opening)
        for planes in itertools.chain(opening, rest):
            restored = self.push(planes)
            if restored is not None:
                yield restored
        yield from self.flush()

    def push(self, planes: tuple[Plane, ...] | Plane) -> tuple[DevicePlane, ...] | None:
        """Takes a frame and returns the one from ``lookahead`` frames ago, or None at the start.

        ``planes`` are the frame's arrays in the stream's layout; a single one, such as packed RGB,
        needs no tuple. The result is always a tuple, on the device. It is returned as soon as the
        work is queued; reading it waits.

        Raises:
          UserError: the arrays do not match the stream's layout and size.
          ValueError: the stream was flushed.
        """
        on_device = self._on_device(planes)
        if self._ended:
            raise ValueError("the stream was already flushed; open another one")
        self._waiting.append(on_device)
        return self._advance(on_device, repeated=False)

    def look(self, opening: Sequence[tuple[Plane, ...] | Plane]) -> None:
        """Looks at the first ``opening`` frames of a video, or at all frames of a shorter one.

        They must still be pushed afterwards. Blur paths estimate the shutter from them.

        Raises:
          UserError: as for ``push``.
          ValueError: a frame was already pushed.
        """
        if not (self.opening and len(opening)):
            return
        if self._steps:
            raise ValueError("call look before the first frame is pushed")
        parts = looking(self._parts)
        with jax.default_device(self._device):
            states = jax.tree.map(jnp.copy, stream_states(self._model, parts, *self._size))
        states, last = self._placed(states), opening[-1]
        flushed = [last] * self._model.lookahead if len(opening) < self.opening else []
        for index, planes in enumerate([*opening, *flushed]):
            given = self._what, self._parameters, states, self._on_device(planes), None
            states, _ = frame_through(queue, parts, *given, repeated=index >= len(opening))
        self._states |= learnt(parts, states)

    def _on_device(self, planes: tuple[Plane, ...] | Plane) -> tuple[DevicePlane, ...]:
        if isinstance(planes, (np.ndarray, jax.Array)):
            planes = (planes,)
        layout = self._what.layout
        shapes = layout.plane_shapes(*self._size)
        dtypes = {plane.dtype for plane in planes}
        if [plane.shape for plane in planes] != shapes or dtypes != {layout.dtype}:
            right = ", ".join(" ".join(map(str, shape)) for shape in shapes)
            given = ", ".join(described(plane) for plane in planes[:3])
            raise UserError(
                f"a frame of this stream must be {right} in {layout.dtype}, not {given}"
            )
        # Copied, since a CPU device may use the caller's memory, which a camera may reuse.
        return jax.device_put(tuple(map(np.array, planes)), self._device)

    def flush(self) -> Iterator[tuple[DevicePlane, ...]]:
        """Yields the frames that have not come out yet; the last one is repeated as look-ahead.

        No frame can be pushed afterwards.
        """
        if not self._waiting:
            return
        self._ended = True
        last = self._waiting[-1]
        while self._waiting:
            restored = self._advance(last, repeated=True)
            if restored is not None:
                yield restored

    @property
    def shutter(self) -> tuple[float, str] | None:
        """Duty and light of blur paths, as given or estimated so far; None without paths."""
        return self._model.shutter(self._states)

    def _advance(
        self, planes: tuple[DevicePlane, ...], *, repeated: bool
    ) -> tuple[DevicePlane, ...] | None:
        self._steps += 1
        due = Due(self._waiting[0], self._strength)
        given = self._what, self._parameters, self._states, planes, due
        self._states, restored = frame_through(queue, self._parts, *given, repeated=repeated)
        if self._steps <= self._model.lookahead:
            return None
        self._waiting.popleft()
        return restored

    def _placed(self, states: States) -> States:
        # Committed to the device, like the results of a step: otherwise the first step, the second
        # and that of ``step_memory`` would be three programs.
        return jax.device_put(states, self._device)


@functools.partial(jax.jit, static_argnums=0)
def _restore_clip(
    graph: nnx.GraphDef[Any], parameters: nnx.State, video: Num[Array, "T H W 3"]
) -> Num[Array, "T H W 3"]:
    model: VideoRestorer = nnx.merge(graph, parameters)
    return _to_integers(model.restore_clip(to_floats(video)[None])[0], video.dtype)


def to_floats(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts integers of 8 or 16 bits to float32 in [0, 1]."""
    return x.astype(jnp.float32) / jnp.iinfo(x.dtype).max


def _to_integers(x: Float[Array, "*shape"], dtype: DTypeLike) -> Num[Array, "*shape"]:
    return jnp.round(jnp.clip(x, 0, 1) * jnp.iinfo(dtype).max).astype(dtype)
