"""The forms in which a network is exported, as functions for any height and width.

A form is a function of named arrays. ``step`` takes a frame and the state and returns the restored
frame of ``lookahead`` steps ago and the next state: exactly the stream, at constant memory.
``window`` maps a few frames to one, for programs that keep no state; ``image`` takes one frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.shapes import Frame

FORMS = ("step", "window", "image")

_RECIPE = (
    "Before the first frame, fill every state array with zeros (false). Feed the frames in order, "
    "and pass each output next.NAME as the input state.NAME of the next call. The outputs are "
    "{late} frames late: drop the first {late}. After the last frame, feed it {late} more times "
    "with repeated = true to get the remaining outputs."
)


@dataclasses.dataclass(frozen=True)
class Form:
    """A function of named arrays, and metadata for readers of the file."""

    function: Callable[..., tuple[jax.Array, ...]]
    """Takes the arrays of ``inputs`` and returns those of ``outputs``, in these orders."""
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]
    about: dict[str, Any]


def make_form(
    model: VideoRestorer, kind: str, *, warm_up: int | None = None, channels_first: bool = False
) -> Form:
    """Builds a form of a model.

    Args:
      model: the network.
      kind: one of ``FORMS``.
      warm_up: for a window, how many frames before the restored one pass through the network;
        None for as many as the look-ahead, so that the middle frame is restored.
      channels_first: images are ``1 3 H W`` and windows ``1 3T H W``; else ``1 H W 3`` and
        ``1 T H W 3``.

    Returns:
      The form. Its inputs have the symbolic sizes ``height`` and ``width``. Images are RGB, [0, 1],
      float32; the outputs are not clipped.

    Raises:
      UserError: ``warm_up`` does not fit the form, or ``pad`` or the state can't be exported.
    """
    if type(model).pad is not VideoRestorer.pad:
        raise UserError(
            f"{type(model).__name__} has its own pad method, which a file for frames of any size "
            "does not support; it can't be exported"
        )
    if warm_up is not None and (kind != "window" or not 0 <= warm_up <= 64):
        raise UserError("--warm-up must be 0 to 64 frames and requires --form=window")
    height, width = jax.export.symbolic_shape("height, width")
    late, layout = model.lookahead, _StateLayout(model)
    if kind == "step":
        return _step(model, layout, height, width, channels_first)
    before = 0 if kind == "image" else late if warm_up is None else warm_up
    count = 1 if kind == "image" else before + 1 + late

    def restore(frames: jax.Array) -> tuple[jax.Array, ...]:
        if channels_first:
            frames = frames.reshape(1, count, 3, height, width).transpose(0, 1, 3, 4, 2)
        restored = lax.index_in_dim(frames, 0, axis=1, keepdims=False)
        state = layout.first_state(restored)
        for i in range(before + 1 + late):
            frame = lax.index_in_dim(frames, min(i, count - 1), axis=1, keepdims=False)
            state, restored = _step_any_size(model, state, frame, jnp.bool_(i >= count))
        return (_out(restored, channels_first),)

    shape = (1, 3 * count, height, width) if channels_first else (1, count, height, width, 3)
    name = "image" if kind == "image" else "frames"
    about = {"form": kind, "frames": count, "restored": before, "lookahead": late}
    if kind == "image":
        about = {"form": kind}
    inputs = {name: jax.ShapeDtypeStruct(shape, jnp.float32)}
    return Form(restore, inputs, ("restored",), about)


class _StateLayout:
    """The names, sizes and initial values of the arrays of a model's state.

    Attributes:
      shapes: sizes of each array, each a number, or ``times`` for every ``per`` pixels of a side.
      starts: the one value that each array of the first state holds.
    """

    def __init__(self, model: VideoRestorer) -> None:
        self.multiple = m = model.multiple
        first = model.initial_state(1, m, m)
        larger = jax.eval_shape(lambda: model.initial_state(1, 2 * m, 3 * m))
        with_paths, self.tree = jax.tree.flatten_with_path(first)
        self.names = [
            jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in with_paths
        ]
        self.types = [leaf.dtype for _, leaf in with_paths]
        self.starts = [_constant(np.asarray(leaf)) for _, leaf in with_paths]
        self.shapes = [
            [_size(*sizes, m) for sizes in zip(leaf.shape, more.shape, strict=True)]
            for (_, leaf), more in zip(with_paths, jax.tree.leaves(larger), strict=True)
        ]

    def first_state(self, frame: Frame) -> State:
        """Returns ``model.initial_state`` with sizes taken from pixels, as converters require."""
        padded = _padded(frame, self.multiple)
        leaves = []
        for start, shape, dtype in zip(self.starts, self.shapes, self.types, strict=True):
            axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
            if not axes:
                leaves.append(jnp.full(shape, start, dtype))
                continue
            strides = [1, *(self.multiple // shape[axis]["times"] for axis in axes), 1]
            pixels = lax.slice(padded, (0, 0, 0, 0), (*padded.shape[:3], 1), strides)
            # Pixels are finite: these are zeros of the right size.
            sized = lax.squeeze(pixels * 0, (0, 3)).astype(dtype)
            whole = [size if isinstance(size, int) else 0 for size in shape]
            for axis, size in zip(axes, sized.shape, strict=True):
                whole[axis] = size
            leaves.append(_shifted(lax.broadcast_in_dim(sized, whole, axes), start))
        return jax.tree.unflatten(self.tree, leaves)


def _constant(leaf: np.ndarray) -> Any:
    values = np.unique(leaf)
    if values.size != 1:
        raise UserError("the state before the first frame is not constant; it can't be exported")
    return values[0]


def _step(
    model: VideoRestorer, layout: _StateLayout, height: Any, width: Any, channels_first: bool
) -> Form:
    multiple = model.multiple
    leaves = jax.tree.leaves(
        jax.eval_shape(
            lambda: model.initial_state(1, _round_up(height, multiple), _round_up(width, multiple))
        )
    )

    def step(frame: jax.Array, repeated: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        if channels_first:
            frame = frame.transpose(0, 2, 3, 1)
        inside = [_shifted(*pair) for pair in zip(state, layout.starts, strict=True)]
        after, restored = _step_any_size(
            model, jax.tree.unflatten(layout.tree, inside), frame, repeated
        )
        outside = [
            _shifted(*pair) for pair in zip(jax.tree.leaves(after), layout.starts, strict=True)
        ]
        return (_out(restored, channels_first), *outside)

    frame = (1, 3, height, width) if channels_first else (1, height, width, 3)
    inputs = {
        "frame": jax.ShapeDtypeStruct(frame, jnp.float32),
        "repeated": jax.ShapeDtypeStruct((), jnp.bool_),
        **{f"state.{name}": leaf for name, leaf in zip(layout.names, leaves, strict=True)},
    }
    about = {
        "form": "step",
        "lookahead": model.lookahead,
        "recipe": _RECIPE.format(late=model.lookahead),
        "state": [
            {"name": name, "type": str(leaf.dtype), "shape": shape}
            for name, leaf, shape in zip(layout.names, leaves, layout.shapes, strict=True)
        ],
    }
    return Form(step, inputs, ("restored", *(f"next.{name}" for name in layout.names)), about)


def _step_any_size(
    model: VideoRestorer, state: State, frame: Frame, repeated: jax.Array
) -> tuple[State, Frame]:
    """Runs ``model.step`` at symbolic sizes, where ``jnp.pad`` cannot replicate edges."""
    height, width = frame.shape[1:3]
    state, restored = model.step(state, _padded(frame, model.multiple), repeated)
    return state, lax.slice(restored, (0, 0, 0, 0), (1, height, width, 3))


def _round_up(size: Any, multiple: int) -> Any:
    """Rounds up to a multiple; divides no negative numbers, whose quotients ONNX rounds up."""
    return (size + multiple - 1) // multiple * multiple


def _padded(frame: Frame, multiple: int) -> Float[Array, "B Hp Wp 3"]:
    for axis in (1, 2):
        # Appends as many lines as can be needed and cuts off the rest: no operator makes a
        # symbolic number of copies.
        size = frame.shape[axis]
        last = lax.slice_in_dim(frame, size - 1, size, axis=axis)
        longer = lax.concatenate([frame, *[last] * (multiple - 1)], axis)
        frame = lax.slice_in_dim(longer, 0, _round_up(size, multiple), axis=axis)
    return frame


def _out(restored: Frame, channels_first: bool) -> jax.Array:
    return restored.transpose(0, 3, 1, 2) if channels_first else restored


def _shifted(leaf: jax.Array, start: Any) -> jax.Array:
    """Makes the first state zeros outside and ``start`` inside; it is its own inverse."""
    if not start:
        return leaf
    return jnp.logical_not(leaf) if leaf.dtype == jnp.bool_ else start - leaf


def _size(size: int, larger: int, multiple: int) -> Any:
    """How a size grows from a square of ``multiple`` pixels to 2x its height, 3x its width."""
    if size == larger:
        return size
    side = {2 * size: "height", 3 * size: "width"}.get(larger)
    if side is None:
        raise UserError(
            "the size of the state is not proportional to the frame's; it can't be exported"
        )
    return {"of": side, "times": size, "per": multiple}
