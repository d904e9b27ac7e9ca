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

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.parts import Part, States, learnt, looking
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.restoration.placement import (
    Due,
    Incoming,
    compiled_for,
    device_of,
    frame_through,
    queue,
    started,
)
from jaxdeblur.restoration.tiling import TileGrid
from jaxdeblur.restoration.timeline import InTime, Timeline
from jaxdeblur.shapes import DevicePlane, PixelClip, Pixels, Plane
from jaxdeblur.video.pixels import RGB8, PixelLayout, layout_of


def restore_pixels(model: VideoRestorer, video: PixelClip) -> PixelClip:
    """Restores all frames of a clip at once with the model's clip view; keeps the clip's dtype.

    Device memory grows with the number of frames; ``restore_frames`` gives the same result to
    within one grey level in constant memory.
    """
    graph, state = nnx.split(model)
    return np.asarray(_restore_pixels(graph, state, video))


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


_MOST_OPENING = 64
"""Frames that are kept in memory for the opening, if most of them are duplicates."""

_LOOK_AHEAD = 4
"""Frames of the opening that wait while another is looked at: parts take different times."""


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
        keep: bool = False,
        alone: bool = False,
    ):
        """Prepares the state before the first frame.

        Args:
          model: the network.
          height, width: of every frame, in pixels.
          layout: pixel layout of a frame's arrays; packed 8-bit RGB by default.
          strength: 1 gives the restored frame, 0 the input, values between them a mixture.
          tiles: tiling of each frame, which takes less memory; None for the whole frame at once.
          keep: whether its programs were compiled with ``step_memory(keep=True)``.
          alone: whether ``restore`` restores each frame by itself, as a photograph.
        """
        what = compiled_for(model, height, width, layout, tiles, keep=keep)
        self._what, self._parameters = what
        self._parts = self._what.parts(model)
        self._size = (height, width)
        self.opening = model.opening
        self._model = model
        # All arrays are placed on the parameters' device, so that the step runs there.
        self._device = device_of(self._parameters)
        self._states = self._started(self._parts)
        self._strength = jax.device_put(jnp.float32(strength), self._device)
        # Frames that have gone in and not come out yet; the network's change is added to them.
        self._waiting: deque[Incoming] = deque()
        self._steps = 0
        self._ended = False
        self._alone = alone
        self.timeline = Timeline(layout)

    def restore(
        self, frames: Iterable[tuple[Plane, ...] | Plane]
    ) -> Iterator[tuple[DevicePlane, ...]]:
        """Restores a whole video: looks at its opening, pushes all frames and flushes.

        A duplicate is left out and gets its twin's result. A cut is an end on both sides. Frames
        are brought to one brightness, and put back (timeline.py).
        """
        rest = self._timed(frames)
        opening: list[tuple[tuple[Plane, ...], InTime]] = []
        for planes, shot in rest if self.opening else ():
            # Copied, since the caller may reuse their memory.
            opening.append((jax.tree.map(np.array, planes), shot))
            distinct = [each for each, here in opening if not here.repeats]
            cut = shot.starts and len(opening) > 1
            if cut or len(distinct) == self.opening or len(opening) == _MOST_OPENING:
                break
        first_scene = itertools.takewhile(lambda each: not each[1].starts, opening[1:])
        looked = [each for each in [*opening[:1], *first_scene] if not each[1].repeats]
        self._look([planes for planes, _ in looked], [shot for _, shot in looked])
        twins: deque[int] = deque()  # How often each frame that waits is repeated.
        restored: tuple[DevicePlane, ...] | None = None
        for planes, shot in itertools.chain(opening, rest):
            if shot.repeats:
                if twins:
                    twins[-1] += 1
                elif restored is not None:
                    yield restored
                continue
            if (shot.starts or self._alone) and self._steps:
                for restored in self.flush():
                    yield from itertools.repeat(restored, 1 + twins.popleft())
                self._start_again()
            twins.append(0)
            made = self._push(planes, shot)
            if made is not None:
                restored = made
                yield from itertools.repeat(restored, 1 + twins.popleft())
        for restored in self.flush():
            yield from itertools.repeat(restored, 1 + twins.popleft())

    def _timed(
        self, frames: Iterable[tuple[Plane, ...] | Plane]
    ) -> Iterator[tuple[tuple[Plane, ...], InTime]]:
        """Yields the planes of each frame, and its place in time."""
        self.timeline = Timeline(self._what.layout)
        for given in frames:
            planes = self._checked(given)
            yield planes, self.timeline.add(planes)

    def _start_again(self) -> None:
        """Forgets all frames, but not what looking at the opening told."""
        kept = learnt(looking(self._parts), self._states)
        self._states = self._started(self._parts) | kept
        self._steps, self._ended = 0, False

    def push(self, planes: tuple[Plane, ...] | Plane) -> tuple[DevicePlane, ...] | None:
        """Takes a frame and returns the one from ``lookahead`` frames ago, or None at the start.

        ``planes`` are the frame's arrays in the stream's layout; a single one, such as packed RGB,
        needs no tuple. The result is always a tuple, on the device. It is returned as soon as the
        work is queued; reading it waits.

        Raises:
          UserError: the arrays do not match the stream's layout and size.
          ValueError: the stream was flushed.
        """
        return self._push(planes, None)

    def _push(
        self, planes: tuple[Plane, ...] | Plane, at: InTime | None
    ) -> tuple[DevicePlane, ...] | None:
        on_device = self._on_device(planes, at)
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
        self._look(opening, [None] * len(opening))

    def _look(
        self, opening: Sequence[tuple[Plane, ...] | Plane], at: Sequence[InTime | None]
    ) -> None:
        if not (self.opening and len(opening)):
            return
        if self._steps:
            raise ValueError("call look before the first frame is pushed")
        parts = looking(self._parts)
        states, frames = self._started(parts), [*zip(opening, at, strict=True)]
        flushed = frames[-1:] * self._model.lookahead if len(opening) < self.opening else []
        waiting: deque[Any] = deque()

        def run(part: Part, *given: Any) -> Any:
            state, made = queue(part, *given)
            waiting.append(made)
            return state, made

        for index, frame in enumerate([*frames, *flushed]):
            given = self._what, self._parameters, states, self._on_device(*frame), None
            states, _ = frame_through(run, parts, *given, repeated=index >= len(opening))
            # Motion is found much sooner than the shutter, and its windows of five frames wait.
            ahead = 0 if devices.memory_is_scarce() else _LOOK_AHEAD
            while len(waiting) > ahead * len(parts):
                jax.block_until_ready(waiting.popleft())
        self._states |= learnt(parts, states)

    def _checked(self, planes: tuple[Plane, ...] | Plane) -> tuple[Plane, ...]:
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
        return planes

    def _on_device(self, planes: tuple[Plane, ...] | Plane, at: InTime | None) -> Incoming:
        height, width = self._size
        gain, inside = (at.gain, at.inside) if at else (1.0, (0, height - 1, 0, width - 1))
        # Copied, since a CPU device may use the caller's memory, which a camera may reuse.
        held = tuple(np.array(plane) for plane in self._checked(planes))
        placed: Incoming = jax.device_put(
            (held, np.float32(gain), np.array(inside, np.int32)), self._device
        )
        return Incoming(*placed)

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
    def found(self) -> dict[str, Any]:
        """What blur paths found out so far, or were given: duty, light, stabilised; else {}."""
        return self._model.found(self._states)

    @property
    def remarks(self) -> list[str]:
        """What the user should know of the restoration so far, a line each."""
        return [*self._model.remarks(self._states), *self.timeline.remarks()]

    def _advance(self, frame: Incoming, *, repeated: bool) -> tuple[DevicePlane, ...] | None:
        self._steps += 1
        due = Due(self._waiting[0], self._strength)
        given = self._what, self._parameters, self._states, frame, due
        is_due = self._steps > self._model.lookahead
        parts = [part for part in self._parts if is_due or not part.waits]
        self._states, restored = frame_through(queue, parts, *given, repeated=repeated)
        if not is_due:
            return None
        self._waiting.popleft()
        return restored

    def _started(self, parts: list[Part]) -> States:
        # Always all of them, so that it is one program.
        with jax.default_device(self._device):
            states = self._placed(started(self._what, self._size, self._parameters))
        return {part.name: states[part.name] for part in parts}

    def _placed(self, states: States) -> States:
        # Committed to the device, like the results of a step: otherwise the first step, the second
        # and that of ``step_memory`` would be three programs.
        return jax.device_put(states, self._device)


@functools.partial(jax.jit, static_argnums=0)
def _restore_pixels(
    graph: nnx.GraphDef[Any], parameters: nnx.State, video: Num[Array, "T H W 3"]
) -> Num[Array, "T H W 3"]:
    model: VideoRestorer = nnx.merge(graph, parameters)
    return _to_integers(model.restore_clip(to_floats(video)[None])[0], video.dtype)


def to_floats(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts integers of 8 or 16 bits to float32 in [0, 1]."""
    return x.astype(jnp.float32) / jnp.iinfo(x.dtype).max


def _to_integers(x: Float[Array, "*shape"], dtype: DTypeLike) -> Num[Array, "*shape"]:
    return jnp.round(jnp.clip(x, 0, 1) * jnp.iinfo(dtype).max).astype(dtype)
