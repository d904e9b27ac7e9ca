"""PathRestorer: restores frames by their blur paths, on top of a network's result.

A frame passes through eight parts (models/parts.py), each with its own state:

    motion   gathers five frames, and measures how far their tiles move     motion.py
    watch    adds what these tell of the shutter, if that is to be found    shutter.py
    steady   finds what a stabiliser took from the camera's motion          stabiliser.py
    fit      fits paths to the middle frame; nothing in them is learnt      window_fit.py
    base     restores the frame by a network, if there is one
    light    finds what averaging in linear light added to it               light.py
    filter   filters the frame along its paths; the gate decides how much   estimate.py
    fusion   combines that with the base, by a network if there is one      models/path_maps.py

Where the gate does not trust the paths, the result is the base, or without one the blurred frame.
The last frame, as the gate left it, helps to filter the next (wiener.py).

The opening of a video passes through motion, watch and steady first. Large frames do without the
base's finest size, three quarters of its work: the second network sees the frame at that size, too
(docs/lab/paths.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from jaxdeblur.errors import UserError
from jaxdeblur.images import LUMA
from jaxdeblur.models.explanation import Explanation
from jaxdeblur.models.parts import (
    FRAME,
    REPEATED,
    RESTORED,
    Part,
    States,
    directly,
    learnt,
    looking,
    run_parts,
    start_parts,
)
from jaxdeblur.models.path_maps import gated, is_heard
from jaxdeblur.models.restorer import State, StepOf, TrainingOutputs, VideoRestorer
from jaxdeblur.options import replaced
from jaxdeblur.paths import self_ensemble
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.estimate import LEAST_SIDE, response_correction
from jaxdeblur.paths.gate import facts, remarks
from jaxdeblur.paths.light import ResponseCorrection
from jaxdeblur.paths.motion import connected, filled, is_small, marked_of, moves_of, still_of
from jaxdeblur.paths.records import (
    EVERY,
    FIRST,
    Fitted,
    FusionInput,
    LastFrames,
    WatchState,
    Window,
    for_each,
    maps_of,
)
from jaxdeblur.paths.shutter import Shutter, watch
from jaxdeblur.paths.stabiliser import Stabiliser, follow
from jaxdeblur.paths.window_fit import WINDOW, PastPaths, fit_window
from jaxdeblur.shapes import MAP_CHANNELS, Clip, Frame

LOOKAHEAD = WINDOW // 2

MOVED, SHUTTER, STABILISER, FITTED, BASE, CORRECTION, MAPPED = (
    "window",
    "shutter",
    "stabiliser",
    "fitted",
    "base",
    "correction",
    "maps",
)
"""What the parts give, in their order; the last one gives the restored frame."""


class PathRestorer(VideoRestorer):
    """Restores frames by their paths, on top of a network (``base``) or of the blurred frames.

    Args:
      config: of the paths.
      base: the network that restores the base; None for the blurred frames.
      fusion: makes frames from the maps of models/path_maps.py; None for the gate alone.

    Training trains ``fusion`` on clips of its maps (training/path_clips.py).

    Raises:
      UserError: the base's look-ahead is not two frames, or ``fusion`` takes no maps.
    """

    lookahead = LOOKAHEAD

    def __init__(
        self,
        config: PathsConfig,
        base: VideoRestorer | None = None,
        fusion: VideoRestorer | None = None,
    ) -> None:
        if base is not None and base.lookahead != LOOKAHEAD:
            raise UserError(f"a base must look {LOOKAHEAD} frames ahead, not {base.lookahead}")
        if fusion is not None and (fusion.channels, fusion.lookahead) != (MAP_CHANNELS, 0):
            raise UserError("the network over blur paths must take their maps, and look at no more")
        self.config = config
        self.trains_on_maps = fusion is not None
        self.opening = EVERY if config.asks or config.stabilised != "no" else 0
        self.base, self.fusion = base, fusion
        self.multiple = math.lcm(*(net.multiple for net in (base, fusion) if net is not None))

    def parts(self, step_of: StepOf | None = None) -> list[Part]:
        """Returns the parts, in the frame's order.

        Args:
          step_of: steps a network; by default on the whole frame.
        """
        base, step_of = self.base, step_of or VideoRestorer.step
        asks, steady = self.config.asks, self.config.stabilised
        known = [name for name, found in ((SHUTTER, asks), (STABILISER, steady != "no")) if found]
        start_steady = functools.partial(_start_steady, steady == "yes")
        fitted = (FITTED,) if base is None else (FITTED, BASE)
        start_base, start_fusion = (
            functools.partial(self._start, net) for net in (base, self.fusion)
        )
        step_base, step_fusion = (
            functools.partial(step, step_of) for step in (self._base, self._fusion)
        )
        about_due = functools.partial(Part, waits=True)
        every = [
            Part("motion", (FRAME, REPEATED), MOVED, LastFrames.none, self._motion, whole=True),
            Part("watch", (MOVED,), SHUTTER, _start_watch, self._watch, learns=True, whole=True),
            Part("steady", (MOVED,), STABILISER, start_steady, _steady, learns=True, whole=True),
            about_due("fit", (MOVED, *known), FITTED, _start_fit, self._fit_by(known), whole=True),
            Part("base", (FRAME, REPEATED), BASE, start_base, step_base),
            about_due("light", fitted, CORRECTION, _start_light, self._light, whole=True),
            about_due(
                "filter", (CORRECTION, *fitted), MAPPED, _start_filter, self._filter, whole=True
            ),
            about_due("fusion", (MAPPED,), RESTORED, start_fusion, step_fusion),
        ]
        absent = {"watch": not asks, "steady": steady == "no", "base": base is None}
        return [part for part in every if not absent.get(part.name)]

    def found(self, states: States) -> dict[str, Any]:
        """Returns duty, light and stabilisation of the first video, as given or found so far."""
        return self.config.found(facts(*_known(states)))

    def remarks(self, states: States) -> list[str]:
        """Returns what the user should know of the first video's restoration so far."""
        return remarks(facts(*_known(states))) if self.config.asks else []

    def with_options(self, **options: Any) -> PathRestorer:
        """Returns the restorer with other options of the paths.

        Raises:
          UserError: a value is not allowed.
        """
        return PathRestorer(replaced(self.config, **options), self.base, self.fusion)

    @property
    def context(self) -> tuple[int, int]:
        """The ``context`` of the network that is trained."""
        return super().context if self.fusion is None else self.fusion.context

    def training_outputs(
        self, clip: Float[Array, "B length H W S"], sharp: Clip
    ) -> TrainingOutputs:
        """Returns what the loss compares of ``fusion``, for a clip of its maps.

        Raises:
          UserError: there is no such network.
        """
        if self.fusion is None:
            raise UserError("blur paths without a network over them have nothing to train")
        return self.fusion.training_outputs(clip, sharp)

    def spread_over(self, mesh: Mesh) -> None:
        """Passes the mesh on to the networks."""
        for net in filter(None, (self.base, self.fusion)):
            net.spread_over(mesh)

    def save_memory(self) -> None:
        """Makes the network that is trained save memory."""
        if self.fusion is not None:
            self.fusion.save_memory()

    @property
    def halo(self) -> int:
        """The halo of the base; the paths always run on the whole frame."""
        return 0 if self.base is None else self.base.halo

    def _start(self, net: VideoRestorer | None, batch: int, height: int, width: int) -> State:
        if net is None:
            return ()
        state = self_ensemble.initial_state(batch, height, width, net)
        return state if is_small(height, width) else net.without_finest(state)

    def _motion(
        self, state: LastFrames, frame: Frame, repeated: bool | Bool[Array, ""]
    ) -> tuple[LastFrames, Window]:
        """Gathers the frames; the middle one is the frame that the other parts are about."""
        frames = jnp.concatenate([state.frames, frame[:, None]], 1)
        present = jnp.append(state.present, jnp.where(repeated, 0.0, 1.0))
        moves, near = None, jnp.broadcast_to(present, (len(frames), WINDOW))
        if min(frames.shape[2:4]) >= LEAST_SIDE:
            moves = for_each(moves_of, frames)
            near = jax.vmap(connected, (0, None))(moves, present)
        window = Window(
            frames,
            moves,
            near,
            still=for_each(lambda each: still_of(*each), (frames, near)),
            first=~jnp.any(state.present > 0),
            here=present[LOOKAHEAD] > 0,
            alone=present[LOOKAHEAD - 1] + present[LOOKAHEAD + 1] == 0,
        )
        return LastFrames(frames[:, 1:], present[1:]), window

    def _watch(self, state: WatchState, window: Window) -> tuple[WatchState, Shutter]:
        # After the opening, its frames are not watched again.
        seen = jnp.where(window.first, -(-state.seen // EVERY) * EVERY, state.seen)
        shutter = state.shutter
        if window.moves is not None:
            observe = (seen < FIRST) | (seen % EVERY == EVERY - 1)
            videos = window.frames, window.moves, window.present, window.still, shutter
            shutter = for_each(lambda each: watch(*each, observe), videos)
        # A copy: the state's memory is used again while others read the result.
        return WatchState(shutter, seen + window.here), jax.tree.map(jnp.copy, shutter)

    def fit(
        self,
        past: PastPaths,
        window: Window,
        shutter: Shutter | None = None,
        stabiliser: Stabiliser | None = None,
        *given: Any,
    ) -> tuple[PastPaths, Fitted]:
        """Fits paths to the middle frame: the step of a part.

        Args:
          past: the paths of the frame before.
          window: the frame, between its neighbours.
          shutter: what is known of the shutters.
          stabiliser: what is known of stabilisers.
          given: the duty and whether light is linear, in place of the config's.
        """
        frames, moves, present, still, _, here, alone = window
        middle, fit = slice(LOOKAHEAD - 1, LOOKAHEAD + 2), None
        blurred, marked = frames[:, LOOKAHEAD], still
        if moves is not None:
            shutter = Shutter.unknown(len(frames)) if shutter is None else shutter
            if stabiliser is None:
                stabiliser = Stabiliser.unknown(FIRST, len(frames))
            still = jnp.where(stabiliser.stabilised[:, None, None], 0.0, still)
            marked = for_each(lambda each: marked_of(*each), (blurred, still, moves))
            still = jnp.maximum(still, marked)
            seen = for_each(lambda each: filled(*each), (frames[:, middle], marked))
            frames = frames.at[:, middle].set(seen)
            videos = frames, moves, present, shutter, stabiliser, past
            known = given or self.config.given
            fit = for_each(lambda each: fit_window(*each, *known), videos)
            past = fit.passed_on
        return past, Fitted(frames[:, middle], blurred, marked, fit, still, here, alone)

    def _fit_by(self, names: list[str]) -> Callable[..., tuple[PastPaths, Fitted]]:
        """Returns the step of the fit, which takes what is known under these names."""

        def step(past: PastPaths, window: Window, *known: Any) -> tuple[PastPaths, Fitted]:
            return self.fit(past, window, **dict(zip(names, known, strict=True)))

        return step

    def _base(
        self, step_of: StepOf, state: State, frame: Frame, repeated: bool | Bool[Array, ""]
    ) -> tuple[State, Frame]:
        assert self.base is not None
        return self_ensemble.step(step_of, self.base, state, frame, repeated)

    def _light(
        self, state: ResponseCorrection, fitted: Fitted, below: Frame | None = None
    ) -> tuple[ResponseCorrection, ResponseCorrection | None]:
        frames, _, _, fit, _, here, _ = fitted
        if fit is None:
            return state, None
        videos = frames, fit, _prior(fitted, below), state
        correction = for_each(lambda each: response_correction(*each), videos)
        of_frame = jax.tree.map(lambda leaf: leaf[:, 1], correction)
        # Before the first frame, no state is kept.
        return jax.tree.map(functools.partial(jnp.where, here), of_frame, state), correction

    def _filter(
        self,
        last: Frame,
        correction: ResponseCorrection | None,
        fitted: Fitted,
        below: Frame | None = None,
    ) -> tuple[Frame, FusionInput]:
        frames, blurred, _, fit, still, here, alone = fitted
        shown, of_frame = blurred if below is None else below, (blurred, still)
        if fit is None:
            return last, FusionInput(None, None, None, None, shown, *of_frame, here, alone)
        videos = frames, fit, _prior(fitted, below), last, correction
        maps, gate, paths, second = for_each(lambda each: maps_of(*each), videos)
        restored = jnp.where(here, gated(maps), last)
        return restored, FusionInput(maps, gate, paths, second, shown, *of_frame, here, alone)

    def _fusion(self, step_of: StepOf, state: State, given: FusionInput) -> tuple[State, Frame]:
        if given.maps is None or given.second is None:
            return state, given.base
        restored = gated(given.maps)
        if self.fusion is not None:
            taken = step_of, self.fusion, state, given.maps, jnp.bool_(False)
            # It is a third of a frame's work, and in many phone videos it changes nothing. In a
            # batch it runs for all videos or for none.
            needed = (given.second > 0) & is_heard(given.maps) & given.here
            state, made = lax.cond(
                needed.any(), lambda: self_ensemble.step(*taken), lambda: (state, restored)
            )
            # Where paths are not trusted, it takes back what the base restored.
            restored = restored + given.second[:, None, None, None] * (made - restored)
        restored = jnp.where(given.alone, given.base, restored)
        return state, restored + given.still[..., None] * (given.blurred - restored)

    def _restore_clip(self, clip: Clip) -> Clip:
        restored: Clip = self._through(clip, self.parts(), lambda made: made.get(RESTORED))
        return restored

    def explain_clip(self, clip: Clip) -> Explanation:
        """Returns the gate and the paths of every frame, and nothing from the networks."""

        def explained(made: dict[str, Any]) -> tuple[Any, Any]:
            given = made.get(MAPPED)
            return (None, None) if given is None else (given.gate, given.paths)

        gate, paths = self._through(self.pad(clip), self.parts()[:-1], explained)
        if clip.shape[1] == 1:  # A frame without neighbours has no path.
            return Explanation()
        return Explanation(gate=gate, paths=paths)

    def _through(
        self, clip: Clip, parts: list[Part], wanted: Callable[[dict[str, Any]], Any]
    ) -> Any:
        """Passes a clip through the parts, its opening first.

        ``wanted`` picks arrays ``B ...`` from a frame's results; returned are ``B T ...``.
        """
        batch, length, height, width, _ = clip.shape

        def pass_on(states: States, parts: list[Part], count: int) -> tuple[States, Any]:
            """Passes ``count`` frames through the parts; beyond the end, the last is repeated."""
            times = np.arange(count)

            def step(states: States, given: tuple[Frame, Array]) -> tuple[States, Any]:
                here = dict(zip((FRAME, REPEATED), given, strict=True))
                states, made = run_parts(parts, directly, states, here)
                return states, wanted(made)

            frames = jnp.moveaxis(clip, 1, 0)[np.minimum(times, length - 1)]
            return lax.scan(step, states, (frames, jnp.asarray(times >= length)))

        states = start_parts(parts, batch, height, width)
        if self.opening:
            looks = self.opening if length >= self.opening else length + LOOKAHEAD
            first = looking(parts)
            seen, _ = pass_on(start_parts(first, batch, height, width), first, looks)
            states |= learnt(first, seen)
        _, made = pass_on(states, parts, length + LOOKAHEAD)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf[LOOKAHEAD:], 0, 1), made)


def _prior(fitted: Fitted, below: Frame | None) -> Frame:
    """Returns the base, or else the frame itself, without what is written on it."""
    if below is None:
        return fitted.frames[:, 1]
    return for_each(lambda each: filled(*each), (below, fitted.marked))


def _start_watch(batch: int, height: int, width: int) -> WatchState:
    return WatchState(Shutter.unknown(batch), jnp.int32(0))


def _start_steady(given: bool, batch: int, height: int, width: int) -> Stabiliser:
    return Stabiliser.unknown(FIRST, batch, given=given)


def _steady(state: Stabiliser, window: Window) -> tuple[Stabiliser, Stabiliser]:
    if window.moves is not None:
        light = window.frames @ LUMA
        videos = light, window.present, state
        state = for_each(lambda each: follow(each[0], each[1], each[2], window.first), videos)
    return state, jax.tree.map(jnp.copy, state)


def _known(states: States) -> tuple[Shutter, Stabiliser]:
    """Returns what the parts that learn know, of as many videos as there are."""
    shutter = states["watch"].shutter if "watch" in states else Shutter.unknown(1)
    return shutter, states.get("steady", Stabiliser.unknown(FIRST, 1))


def _start_fit(batch: int, height: int, width: int) -> PastPaths:
    return PastPaths.unknown((height, width), batch)


def _start_light(batch: int, height: int, width: int) -> ResponseCorrection:
    return ResponseCorrection.unknown(height, width, batch)


def _start_filter(batch: int, height: int, width: int) -> Frame:
    return jnp.zeros((batch, height, width, 3))
