"""The forms in which a network is exported, as functions for any height and width.

A form is a function of named arrays. ``step`` takes a frame and the state and returns the restored
frame of ``lookahead`` steps ago and the next state: exactly the stream, at constant memory.
``window`` maps a few frames to one, for programs that keep no state; ``image`` takes one frame.
"""

from __future__ import annotations

import dataclasses
import math
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
    """A function of named arrays, images first, and metadata for readers of the file."""

    function: Callable[..., tuple[jax.Array, ...]]
    """Takes the arrays of ``inputs`` and returns those of ``outputs``, in these orders."""
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]
    about: dict[str, Any]

    def channels_first(self) -> Form:
        """Returns the form for images ``1 3 H W`` and windows ``1 3T H W``."""
        name, images = next(iter(self.inputs.items()))
        *leading, height, width, channels = images.shape

        def function(planes: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
            images = jnp.moveaxis(planes.reshape(*leading, channels, height, width), -3, -1)
            restored, *after = self.function(images, *others)
            return (jnp.moveaxis(restored, -1, -3), *after)

        shape = (1, math.prod(leading) * channels, height, width)
        inputs = {**self.inputs, name: jax.ShapeDtypeStruct(shape, images.dtype)}
        return dataclasses.replace(self, function=function, inputs=inputs)


def make_form(model: VideoRestorer, kind: str, warm_up: int | None = None) -> Form:
    """Builds a form of a model.

    Args:
      model: the network.
      kind: one of ``FORMS``.
      warm_up: for a window, how many frames before the restored one pass through the network;
        None for as many as the look-ahead, so that the middle frame is restored.

    Returns:
      The form. Its inputs have the symbolic sizes ``height`` and ``width``. Images are RGB, [0, 1],
      float32, ``1 H W 3``, and windows ``1 T H W 3``; the outputs are not clipped.

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
    late, layout = model.lookahead, _layout(model)
    if kind == "step":
        return _step(model, layout, height, width)
    before = 0 if kind == "image" else late if warm_up is None else warm_up
    count = 1 if kind == "image" else before + 1 + late

    def restore(frames: jax.Array) -> tuple[jax.Array, ...]:
        restored = lax.index_in_dim(frames, 0, axis=1, keepdims=False)
        state = _first_state(model, layout, restored)
        for i in range(before + 1 + late):
            frame = lax.index_in_dim(frames, min(i, count - 1), axis=1, keepdims=False)
            state, restored = _step_any_size(model, state, frame, jnp.bool_(i >= count))
        return (restored,)

    name, about = "frames", {"frames": count, "restored": before, "lookahead": late}
    if kind == "image":
        name, about = "image", {}
    inputs = {name: jax.ShapeDtypeStruct((1, count, height, width, 3), jnp.float32)}
    return Form(restore, inputs, ("restored",), {"form": kind, **about})


def _layout(model: VideoRestorer) -> list[dict[str, Any]]:
    """Returns the name, type and shape of each array of a model's state.

    A size is a number, or ``times`` for every ``per`` pixels of a side.
    """
    m = model.multiple
    first = jax.tree.leaves_with_path(model.initial_state(1, m, m))
    if any(np.any(leaf) for _, leaf in first):
        raise UserError("the state before the first frame is not zeros; it can't be exported")
    larger = jax.tree.leaves(jax.eval_shape(lambda: model.initial_state(1, 2 * m, 3 * m)))
    return [
        {
            "name": jax.tree_util.keystr(path, simple=True, separator="."),
            "type": str(leaf.dtype),
            "shape": [_size(*sizes, m) for sizes in zip(leaf.shape, more.shape, strict=True)],
        }
        for (path, leaf), more in zip(first, larger, strict=True)
    ]


def _first_state(model: VideoRestorer, layout: list[dict[str, Any]], frame: Frame) -> State:
    """Returns ``model.initial_state`` with sizes taken from pixels, as converters require."""
    padded = _padded(frame, model)
    leaves = []
    for about in layout:
        shape, dtype = about["shape"], about["type"]
        axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if not axes:
            leaves.append(jnp.zeros(shape, dtype))
            continue
        strides = [1, *(model.multiple // shape[axis]["times"] for axis in axes), 1]
        pixels = lax.slice(padded, (0, 0, 0, 0), (*padded.shape[:3], 1), strides)
        # Pixels are finite: these are zeros of the right size.
        sized = lax.squeeze(pixels * 0, (0, 3)).astype(dtype)
        sizes = dict(zip(axes, sized.shape, strict=True))
        whole = [sizes.get(axis, size) for axis, size in enumerate(shape)]
        leaves.append(lax.broadcast_in_dim(sized, whole, axes))
    like = jax.eval_shape(lambda: model.initial_state(1, *frame.shape[1:3]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _step(model: VideoRestorer, layout: list[dict[str, Any]], height: Any, width: Any) -> Form:
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: model.initial_state(1, height, width)))

    def step(frame: jax.Array, repeated: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        before = jax.tree.unflatten(tree, state)
        after, restored = _step_any_size(model, before, frame, repeated)
        return (restored, *jax.tree.leaves(after))

    names = [leaf["name"] for leaf in layout]
    inputs = {
        "frame": jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32),
        "repeated": jax.ShapeDtypeStruct((), jnp.bool_),
        **{f"state.{name}": leaf for name, leaf in zip(names, leaves, strict=True)},
    }
    late = model.lookahead
    recipe = _RECIPE.format(late=late)
    about = {"form": "step", "lookahead": late, "recipe": recipe, "state": layout}
    return Form(step, inputs, ("restored", *(f"next.{name}" for name in names)), about)


def _step_any_size(
    model: VideoRestorer, state: State, frame: Frame, repeated: jax.Array
) -> tuple[State, Frame]:
    """Runs ``model.step`` at symbolic sizes, where ``jnp.pad`` cannot replicate edges."""
    state, restored = model.step(state, _padded(frame, model), repeated)
    return state, lax.slice(restored, (0, 0, 0, 0), frame.shape)


def _padded(frame: Frame, model: VideoRestorer) -> Float[Array, "B Hp Wp 3"]:
    for axis in (1, 2):
        # Appends as many lines as can be needed and cuts off the rest: no operator makes a
        # symbolic number of copies.
        size = frame.shape[axis]
        last = lax.slice_in_dim(frame, size - 1, size, axis=axis)
        longer = lax.concatenate([frame, *[last] * (model.multiple - 1)], axis)
        frame = lax.slice_in_dim(longer, 0, model.round_up(size), axis=axis)
    return frame


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
