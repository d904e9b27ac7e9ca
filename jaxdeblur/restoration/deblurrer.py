"""Deblurrer: restores videos from Python with trained weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.restoration.compiler import compile_apart
from jaxdeblur.restoration.placement import choose_tiles, step_memory
from jaxdeblur.restoration.stream import Stream, described, restore_frames
from jaxdeblur.restoration.tiling import TileGrid, parse_tiles
from jaxdeblur.shapes import PixelClip, Pixels
from jaxdeblur.video.pixels import RGB8, PixelLayout
from jaxdeblur.weights import shipped
from jaxdeblur.weights.load import load_model


class Deblurrer:
    """Restores clips and streams of frames.

        from jaxdeblur import Deblurrer

        deblurrer = Deblurrer("runs/first")   # no argument: the shipped weights
        sharp = deblurrer(blurred)            # T H W 3, uint8 or uint16, RGB
        for frame in deblurrer.stream(camera):
            show(frame)                       # H W 3, a few frames late
        photo = Deblurrer("strcnn_dtb_photo_paths")(image[None])[0]

    Attributes:
      model: the network.
      source: a description of where its weights come from.
      of_photographs: whether its weights were trained on single images; then each frame is restored
        by itself.
      strength: how much of the restoration is mixed into the input, 0 to 1.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | VideoRestorer | None = None,
        *,
        strength: float = 1.0,
        tile: str = "auto",
        dtype: str | None = None,
        duty: float | None = None,
        light: str | None = None,
        stabilised: bool | None = None,
    ):
        """Loads the weights.

        Args:
          weights: a run folder, a ``.safetensors`` file, the name of shipped weights, or a model;
            None for the default shipped weights.
          strength: 1 gives the restored frames, 0 the input, values between them a mixture.
          tile: "none" restores whole frames; "HxW" restores tiles of that size, for frames that do
            not fit into memory; "auto" decides by the free memory of the device.
          dtype: of the computation, "float32" or "bfloat16"; None for the network's own.
          duty: for blur paths, the share of the time between frames in which the shutter was open,
            above 0 and up to 1; None to estimate it.
          light: for blur paths, "stored" or "linear", what the camera averaged; None estimates it.
          stabilised: for blur paths, whether the video was stabilised after its exposures, so that
            frames are blurred by more motion than they show; None finds it.

        Raises:
          UserError: the weights do not exist, or an argument is out of range.
        """
        if jax.config.read("jax_enable_x64"):
            raise UserError(
                "JAX's 64-bit mode is on, but networks compute in float32; switch it off: "
                "jax.config.update('jax_enable_x64', False)"
            )
        if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
            devices.keep_compiled()
        if not 0 <= strength <= 1:
            raise UserError(f"--strength must be between 0 and 1, not {strength:g}")
        self.strength = strength
        self._chooses_tiles = tile == "auto"
        self._given_tiles = None if self._chooses_tiles else parse_tiles(tile)
        if isinstance(weights, VideoRestorer):
            if dtype is not None:
                raise UserError("dtype applies to loaded weights only; a model has its own")
            self.model, self.source = weights, type(weights).__name__
            self.of_photographs = False
        else:
            named = shipped.default_name() if weights is None else str(weights)
            loaded = load_model(named, dtype=dtype)
            self.model, self.source = loaded.model, loaded.source
            self.of_photographs = loaded.of_photographs
            if loaded.preset not in loaded.source:
                self.source += f" ({loaded.preset})"
        steady = None if stabilised is None else "yes" if stabilised else "no"
        options = {"duty": duty, "light": light, "stabilised": steady}
        given = {name: value for name, value in options.items() if value is not None}
        self.model = self.model.with_options(**given)
        self._tiles: dict[tuple[int, int, PixelLayout], TileGrid | None] = {}

    def __call__(self, clip: PixelClip) -> PixelClip:
        """Restores a clip of any length and size, as a stream does, in constant device memory.

        Raises:
          UserError: ``clip`` is not such an array.
        """
        if not isinstance(clip, np.ndarray | jax.Array) or clip.ndim != 4:
            given = described(clip)
            if getattr(clip, "ndim", 0) == 3:
                given += "; to restore a single frame, pass clip[None]"
            raise UserError(f"a clip must be an array T H W 3 in uint8 or uint16, not {given}")
        restored = np.empty_like(clip)
        for t, frame in enumerate(self.stream(clip)):
            restored[t] = frame
        return restored

    def stream(self, frames: Iterable[Pixels]) -> Iterator[Pixels]:
        """Restores frames as they arrive (``restore_frames``), ``model.lookahead`` frames late.

        The first waits for ``model.opening`` frames, from which blur paths estimate the shutter.
        """
        return restore_frames(self.open_stream, frames)

    def warm_up(self, height: int, width: int) -> None:
        """Compiles for a frame size, so that the first frame of a stream does not wait for it."""
        self(np.zeros((1, height, width, 3), np.uint8))

    def compile(self, height: int, width: int, layout: PixelLayout = RGB8) -> TileGrid | None:
        """Compiles for a frame size and layout, once; returns the tiling, None for whole frames."""
        key = height, width, layout
        if key not in self._tiles:
            tiles = self._given_tiles
            compile_apart(self.model, height, width, layout, tiles)
            if self._chooses_tiles:
                tiles = choose_tiles(self.model, height, width, layout=layout, keep=True)
            else:
                step_memory(self.model, height, width, layout=layout, tiles=tiles, keep=True)
            self._tiles[key] = tiles
        return self._tiles[key]

    def open_stream(
        self, height: int, width: int, layout: PixelLayout = RGB8, *, alone: bool = False
    ) -> Stream:
        """Opens the stream of one video, for callers that push frames (``Stream.push``).

        Live input may skip ``Stream.look``; blur paths then estimate the shutter as they go.
        ``Stream.restore`` restores each frame by itself if told ``alone``, or ``of_photographs``.
        """
        tiles = self.compile(height, width, layout)
        return Stream(
            self.model,
            height,
            width,
            layout,
            strength=self.strength,
            tiles=tiles,
            keep=True,
            alone=alone or self.of_photographs,
        )
