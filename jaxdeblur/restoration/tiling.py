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

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxdeblur.errors import UserError
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.models.scale_choice import ScaleChoice
from jaxdeblur.options import frame_size
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.shapes import Features, Frame, SeenFrame

_Stepped: TypeAlias = tuple[State, Frame, Features | None]


def parse_tiles(text: str) -> TileGrid | None:
    """Parses ``HxW`` into a grid and ``none`` into None.

    Raises:
      UserError: the text is neither.
    """
    if text == "none":
        return None
    try:
        return TileGrid(*frame_size(text))
    except argparse.ArgumentTypeError:
        raise UserError(f"--tile={text}: must be auto, none or HEIGHTxWIDTH") from None


def halo_of(model: VideoRestorer) -> int:
    """Returns how many pixels a tile reads beyond each side: a step's receptive radius, rounded up.

    For a network at several scales this is the halo of every level, in pixels of its own frames.

    Raises:
      UserError: the model cannot run in tiles.
    """
    if isinstance(model, PathRestorer):
        return 0 if model.base is None else halo_of(model.base)
    if isinstance(model, ScaleChoice):
        return halo_of(model.level)
    return model.round_up(model.receptive_radius)


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
        if isinstance(model, ScaleChoice):
            state, restored = model.step_levels(self._step_tiles, state, padded, ended)
        else:
            state, restored, _ = self._step_tiles(model, state, padded, ended)
        return state, restored[..., :height, :width, :]

    def _step_tiles(
        self, level: Any, state: State, frame: SeenFrame, repeated: Bool[Array, ""]
    ) -> _Stepped:
        """Computes ``level.step_with_features`` tile by tile, for sizes that need no padding."""
        step: Callable[..., _Stepped] = level.step_with_features
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
        return lax.fori_loop(0, tiles.count, restore_tile, start)


def _gather(model: Any, tiles: _Tiles, state: State, frame: SeenFrame) -> Any:
    """Returns what ``model`` gathers from the whole frame."""

    def partial(i: Int[Array, ""] | int) -> Any:
        window = tiles.window(i)
        _, pixels = tiles.cut((state, frame), window)
        return model.gather_partial(pixels, tiles.first_cover(window))

    return lax.fori_loop(
        1, tiles.count, lambda i, total: model.combine_partials(total, partial(i)), partial(0)
    )


class _Window(NamedTuple):
    """A tile's position in the grid, its origin in the frame, and the start of what it reads.

    All are (row, column) pairs, the last two in pixels.
    """

    position: tuple[Int[Array, ""], Int[Array, ""]]
    origin: tuple[Int[Array, ""], Int[Array, ""]]
    start: tuple[Int[Array, ""], Int[Array, ""]]


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
    frame: tuple[int, int]
    tile: tuple[int, int]
    read: tuple[int, int]
    """The size of a window: tile and halo, at most the frame."""
    axes: tuple[tuple[_Axis, _Axis] | None, ...]
    """Row and column axes of each leaf of state, frame and features; None for a leaf without."""

    @classmethod
    def over(cls, grid: TileGrid, model: VideoRestorer, frame: SeenFrame, features: Any) -> _Tiles:
        height, width = frame.shape[-3:-1]
        halo = halo_of(model)
        tile = (
            min(model.round_up(grid.height), height),
            min(model.round_up(grid.width), width),
        )
        read = (min(tile[0] + 2 * halo, height), min(tile[1] + 2 * halo, width))
        of_images = [
            (
                _Axis(1, model.multiple * x.shape[1] // height),
                _Axis(2, model.multiple * x.shape[2] // width),
            )
            for x in jax.tree.leaves((frame, features))
        ]
        axes = (*_axes_of_state(model, height, width), *of_images)
        return cls(model.multiple, (height, width), tile, read, axes)

    @property
    def count(self) -> int:
        rows, columns = self._grid
        return rows * columns

    @property
    def _grid(self) -> tuple[int, int]:
        (height, width), (tile_height, tile_width) = self.frame, self.tile
        return -(-height // tile_height), -(-width // tile_width)

    def window(self, i: Int[Array, ""] | int) -> _Window:
        """Returns the window of tile ``i``, kept inside the frame so that it shares its borders."""
        row, column = jnp.divmod(jnp.asarray(i, jnp.int32), self._grid[1])
        (top, read_top), (left, read_left) = self._along(0, row), self._along(1, column)
        return _Window((row, column), (top, left), (read_top, read_left))

    def _along(self, axis: int, position: Int[Array, ""]) -> tuple[Array, Array]:
        """Returns where a tile and its window begin along rows (0) or columns (1)."""
        whole, tile, read = self.frame[axis], self.tile[axis], self.read[axis]
        begin = jnp.minimum(position * tile, whole - tile)
        # The halo is half of what a window reads beyond the tile, unless the frame cuts it.
        halo = (read - tile) // 2 if read < whole else 0
        return begin, jnp.clip(begin - halo, 0, whole - read)

    def first_cover(self, window: _Window) -> Bool[Array, "H W"]:
        """Returns a mask of the window's pixels that belong to its tile and to no earlier one."""
        inside = []
        for axis in range(2):
            pixels = window.start[axis] + jnp.arange(self.read[axis])
            first = window.position[axis] * self.tile[axis]
            inside.append((pixels >= first) & (pixels < first + self.tile[axis]))
        return inside[0][:, None] & inside[1][None, :]

    def cut(self, arrays: Any, window: _Window) -> Any:
        """Returns the part of each array of (state, frame) that the window reads."""

        def cut_leaf(leaf: Array, axes: tuple[_Axis, _Axis] | None) -> Array:
            for which, axis in enumerate(axes or ()):
                leaf = lax.dynamic_slice_in_dim(
                    leaf,
                    self._samples(window.start[which], axis),
                    self._samples(self.read[which], axis),
                    axis.dimension,
                )
            return leaf

        return self._map(cut_leaf, arrays)

    def paste(self, new: Any, whole: Any, window: _Window) -> Any:
        """Copies the tile from ``new``, the arrays of a window, to its place in ``whole``."""

        def paste_leaf(new: Array, axes: tuple[_Axis, _Axis] | None, whole: Array) -> Array:
            if axes is None:  # counters: every tile returns the same
                return new
            place = [jnp.int32(0)] * whole.ndim
            for which, axis in enumerate(axes):
                new = lax.dynamic_slice_in_dim(
                    new,
                    self._samples(window.origin[which] - window.start[which], axis),
                    self._samples(self.tile[which], axis),
                    axis.dimension,
                )
                place[axis.dimension] = self._samples(window.origin[which], axis)
            return lax.dynamic_update_slice(whole, new, place)

        return self._map(paste_leaf, new, whole)

    def _samples(self, pixels: Any, axis: _Axis) -> Any:
        return pixels // self.multiple * axis.samples

    def _map(self, f: Callable[..., Array], arrays: Any, *rest: Any) -> Any:
        leaves, tree = jax.tree.flatten(arrays)
        others = [jax.tree.leaves(other) for other in rest]
        # Arrays to cut include no features, which come last.
        mapped = [
            f(leaf, axes, *other)
            for leaf, axes, *other in zip(leaves, self.axes[: len(leaves)], *others, strict=True)
        ]
        return jax.tree.unflatten(tree, mapped)


def _axes_of_state(
    model: VideoRestorer, height: int, width: int
) -> list[tuple[_Axis, _Axis] | None]:
    """Returns each state array's row and column axes, which are those that grow with the frame."""

    def shapes(height: int, width: int) -> list[tuple[int, ...]]:
        state = jax.eval_shape(lambda: model.initial_state(1, height, width))
        return [leaf.shape for leaf in jax.tree.leaves(state)]

    larger = shapes(height + model.multiple, width + model.multiple)
    axes: list[tuple[_Axis, _Axis] | None] = []
    for here, there in zip(shapes(height, width), larger, strict=True):
        pairs = enumerate(zip(here, there, strict=True))
        grown = [_Axis(index, b - a) for index, (a, b) in pairs if b != a]
        if len(grown) not in (0, 2):
            raise ValueError(
                f"a state of shape {here} does not scale with the frame as an image does"
            )
        axes.append((grown[0], grown[1]) if grown else None)
    return axes
