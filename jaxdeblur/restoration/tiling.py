"""Tiling: computes a stream's step tile by tile, for frames too large for the device.

The state is kept for the whole frame. Each tile reads the frame and the state with a halo of the
model's ``receptive_radius``, so its interior equals the result for the whole frame. The interiors
make up the new state and the restored frame, without seams and without blending between tiles.

The attention network also gathers from the whole frame, with ``gather_partial`` and
``step_gathered`` (models/fsta.py): each of its squeezes is first combined over all tiles (the
maximum, the sum and the accumulator of a softmax), and only then expanded.

A network at several scales has its levels tiled, each on its own frames and with its own small
halo; the computation between the levels takes little memory and runs on the whole frame.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.models.scale_choice import step_with_features
from jaxdeblur.options import FrameSize
from jaxdeblur.shapes import Features, Frame, SeenFrame

_Stepped: TypeAlias = tuple[State, Frame, Features | None]


def parse_tiles(text: str) -> TileGrid | None:
    """Parses ``HxW`` into a grid and ``none`` into None.

    Raises:
      UserError: the text is neither.
    """
    if text == "none":
        return None
    return TileGrid(*FrameSize(text, "--tile", "auto, none or HEIGHTxWIDTH"))


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """Tiles of ``height x width`` pixels, without their halo; the last ones may overlap others."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    def step(
        self,
        model: VideoRestorer,
        state: State,
        frame: SeenFrame,
        repeated: bool | Bool[Array, ""] = False,
    ) -> tuple[State, Frame]:
        """Computes ``model.step`` tile by tile: the same result, with the memory of one tile.

        Args:
          model: the network.
          state: of the whole frame, from ``model.initial_state`` or the step before.
          frame: the whole frame, B H W 3 or the maps of blur paths, in [0, 1].
          repeated: whether it is the last frame, given once more.
        """
        ended = jnp.asarray(repeated)
        height, width = frame.shape[-3:-1]
        padded = model.pad(frame)
        state, restored = model.step_networks(self._step_tiles, state, padded, ended)
        return state, restored[..., :height, :width, :]

    def _step_tiles(
        self, level: Any, state: State, frame: SeenFrame, repeated: Bool[Array, ""]
    ) -> _Stepped:
        """Computes ``step_with_features`` tile by tile, for sizes that need no padding."""
        step: Callable[..., _Stepped] = functools.partial(step_with_features, level)
        whole = jax.eval_shape(step, state, frame, repeated)
        tiles = _Tiles.over(self, level, frame, whole[-1])

        if hasattr(level, "gather_partial"):
            gathered = _gather(level, tiles, state, frame)

            def step(*window: Any) -> _Stepped:
                return (*level.step_gathered(gathered, *window), None)

        def restore_tile(i: Int[Array, ""], whole: _Stepped) -> _Stepped:
            window = tiles.window(i)
            return tiles.paste(step(*tiles.cut((state, frame), window), repeated), whole, window)

        start = state, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), whole[1:])
        return lax.fori_loop(0, int(tiles.grid.prod()), restore_tile, start)


def _gather(model: Any, tiles: _Tiles, state: State, frame: SeenFrame) -> Any:
    """Returns what ``model`` gathers from the whole frame."""

    def partial(i: Int[Array, ""] | int) -> Any:
        window = tiles.window(i)
        _, pixels = tiles.cut((state, frame), window)
        return model.gather_partial(pixels, tiles.first_cover(window))

    def combine(i: Int[Array, ""], total: Any) -> Any:
        return model.combine_partials(total, partial(i))

    return lax.fori_loop(1, int(tiles.grid.prod()), combine, partial(0))


class _Window(NamedTuple):
    """Where a tile lies in the frame: pairs of row and column, in pixels."""

    first: Int[Array, 2]
    """Its first pixel that belongs to no earlier tile."""
    origin: Int[Array, 2]
    """Its first pixel; the last tiles begin earlier, so that they lie inside the frame."""
    start: Int[Array, 2]
    """The first pixel that it reads, with its halo."""


class _Axis(NamedTuple):
    """How one dimension of an array follows the frame's rows or columns."""

    dimension: int
    """Index of the dimension."""
    samples: int
    """Samples of the array per ``multiple`` pixels of the frame."""


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """The tiles of one frame size for one model; equal windows allow a single compilation."""

    multiple: int
    frame: np.ndarray
    """Height and width, as for the next two."""
    tile: np.ndarray
    read: np.ndarray
    """The size of a window: tile and halo, at most the frame."""
    axes: tuple[tuple[_Axis, ...], ...]
    """Row and column axes of each leaf of state, frame and features; none for a leaf without."""

    @classmethod
    def over(cls, grid: TileGrid, model: VideoRestorer, frame: SeenFrame, features: Any) -> _Tiles:
        size = height, width = frame.shape[-3:-1]
        tile = np.minimum([model.round_up(grid.height), model.round_up(grid.width)], size)
        of_images = [
            tuple(_Axis(k, model.multiple * x.shape[k] // size[k - 1]) for k in (1, 2))
            for x in jax.tree.leaves((frame, features))
        ]
        return cls(
            model.multiple,
            frame=np.array(size),
            tile=tile,
            read=np.minimum(tile + 2 * model.halo, size),
            axes=(*_axes_of_state(model, height, width), *of_images),
        )

    @property
    def grid(self) -> np.ndarray:
        """How many tiles there are one above the other, and side by side."""
        return -(-self.frame // self.tile)

    def window(self, i: Int[Array, ""] | int) -> _Window:
        """Returns the window of tile ``i``, kept inside the frame so that it shares its borders."""
        position = jnp.stack(jnp.divmod(jnp.asarray(i, jnp.int32), int(self.grid[1])))
        first = position * self.tile
        origin = jnp.minimum(first, self.frame - self.tile)
        # The halo is half of what a window reads beyond the tile, unless the frame cuts it.
        halo = np.where(self.read < self.frame, (self.read - self.tile) // 2, 0)
        return _Window(first, origin, jnp.clip(origin - halo, 0, self.frame - self.read))

    def first_cover(self, window: _Window) -> Bool[Array, "H W"]:
        """Returns a mask of the window's pixels that belong to its tile and to no earlier one."""
        rows, columns = (
            (jnp.arange(read) + start >= first) & (jnp.arange(read) + start < first + tile)
            for read, start, first, tile in zip(
                self.read, window.start, window.first, self.tile, strict=True
            )
        )
        return rows[:, None] & columns[None, :]

    def cut(self, arrays: Any, window: _Window) -> Any:
        """Returns the part of each array of (state, frame) that the window reads."""
        return self._map(lambda leaf, axes: self._part(leaf, axes, window.start, self.read), arrays)

    def paste(self, new: Any, whole: Any, window: _Window) -> Any:
        """Copies the tile from ``new``, the arrays of a window, to its place in ``whole``."""

        def paste_leaf(new: Array, axes: tuple[_Axis, ...], whole: Array) -> Array:
            if not axes:  # counters: every tile returns the same
                return new
            place = [jnp.int32(0)] * whole.ndim
            for axis, origin in zip(axes, window.origin, strict=True):
                place[axis.dimension] = self._samples(origin, axis)
            inside = self._part(new, axes, window.origin - window.start, self.tile)
            return lax.dynamic_update_slice(whole, inside, place)

        return self._map(paste_leaf, new, whole)

    def _part(self, leaf: Array, axes: tuple[_Axis, ...], start: Array, size: np.ndarray) -> Array:
        """Cuts an array, from pixel ``start`` of what it shows and for ``size`` pixels."""
        for axis, begin, pixels in zip(axes, start, size, strict=False):
            begin, length = self._samples(begin, axis), self._samples(pixels, axis)
            leaf = lax.dynamic_slice_in_dim(leaf, begin, length, axis.dimension)
        return leaf

    def _samples(self, pixels: Any, axis: _Axis) -> Any:
        return pixels // self.multiple * axis.samples

    def _map(self, f: Callable[..., Array], arrays: Any, *rest: Any) -> Any:
        leaves, tree = jax.tree.flatten(arrays)
        # Arrays to cut include no features, which come last.
        given = leaves, self.axes[: len(leaves)], *map(jax.tree.leaves, rest)
        return jax.tree.unflatten(tree, [f(*each) for each in zip(*given, strict=True)])


def _axes_of_state(model: VideoRestorer, height: int, width: int) -> list[tuple[_Axis, ...]]:
    """Returns each state array's row and column axes, which are those that grow with the frame."""

    def shapes(height: int, width: int) -> list[tuple[int, ...]]:
        state = jax.eval_shape(lambda: model.initial_state(1, height, width))
        return [leaf.shape for leaf in jax.tree.leaves(state)]

    larger = shapes(height + model.multiple, width + model.multiple)
    axes = []
    for here, there in zip(shapes(height, width), larger, strict=True):
        grown = [_Axis(i, b - a) for i, (a, b) in enumerate(zip(here, there, strict=True)) if b > a]
        assert len(grown) in (0, 2), f"a state of shape {here} does not grow as an image does"
        axes.append(tuple(grown))
    return axes
