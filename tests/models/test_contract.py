"""What every model promises, proven for every preset: a new preset is covered with no new line.

``make test`` proves it for our networks with fewer channels, blocks and scales, which compile in a
fraction of the time, and for small peers; ``make stress`` for every network as it is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models import registry
from jaxdeblur.models.layers import Conv
from jaxdeblur.models.parameters import outline, split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import load_extension
from jaxdeblur.presets import PRESETS
from jaxdeblur.shapes import Parameters
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

HEIGHT, WIDTH = 19, 26  # neither divides by two twice, one is odd
LONGEST = 7

# The example extensions have to keep the contract too: loading them adds their presets.
for _example in ("temporal_mean", "window_max"):
    load_extension(Path(__file__).parents[2] / "examples" / f"{_example}.py")

# The systems of Table 1 at their published size take minutes to compile; the small ones are alike.
# RDN, 38 layers in a row, does in any size: peers/test_rdn.py asks the same in one program.
LARGE = {"dbn", "srn", "srn_lstm", "edvr_m", "edvr_l", "rdn", "rdn_small", "stfan", "ifi_rnn"}


def presets_but(large: set[str]) -> pytest.MarkDecorator:
    """Every preset, those in ``large`` under ``make stress`` alone."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[pytest.mark.stress] if name in large else [])
            for name in sorted(PRESETS)
        ],
    )


every_preset = presets_but(LARGE)
every_gradient = presets_but(LARGE | {"edvr_small"})
narrow_and_full = pytest.mark.parametrize(
    "size", ["narrow", pytest.param("full", marks=pytest.mark.stress)]
)

# What a field of our networks is reduced to where it holds more.
NARROW = {
    "width": 8,
    "extract_blocks": 1,
    "blocks": 2,
    "head_width": 8,
    "window": 5,
    "widths": 8,
    "hidden": 8,
    "growths": 4,
    "dense_layers": 2,
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "spatial_maps": 5,
    "temporal_maps": 3,
}


def narrow(network: Any) -> Any:
    """The network of a config with fewer channels, blocks and scales, and else the same."""

    if not type(network).__module__.startswith("jaxdeblur."):
        return network

    def least(value: Any, most: int) -> Any:
        return tuple(min(v, most) for v in value) if isinstance(value, tuple) else min(value, most)

    held = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    less = {name: least(held[name], most) for name, most in NARROW.items() if name in held}
    if "scales" in held:
        less["scales"] = held["scales"][-2:]
    return dataclasses.replace(network, **less)


class Compiled:
    """A preset's model with its two views under jit, compiled once for all tests."""

    def __init__(self, name: str, size: str) -> None:
        network = PRESETS[name].network
        self.network = network if size == "full" else narrow(network)
        self.model = models.build(self.network, seed=1)
        self.rebuild, self.parameters = split(self.model)
        self.clip_view = jax.jit(lambda p, clip: self.rebuild(p).restore_clip(clip))
        self.one_step = jax.jit(lambda p, *a: self.rebuild(p).step(*a))
        # Statistics of the 12 pixels that so small a frame has at 1/8 make much of rounding.
        self.rounding = 1e-5 if self.model.clips_are_independent else 0.05

    def restore(self, clip: Any) -> jax.Array:
        return self.clip_view(self.parameters, clip)

    def stream(self, clip: Any) -> jax.Array:
        batch, time, height, width, _ = clip.shape
        state = self.model.initial_state(batch, height, width)
        restored = []
        for i in range(time + self.model.lookahead):
            repeated = jnp.asarray(i >= time)
            frame = clip[:, min(i, time - 1)]
            state, out = self.one_step(self.parameters, state, frame, repeated)
            restored.append(out)
        return jnp.stack(restored[self.model.lookahead :], axis=1)

    def assert_equal(self, ours: jax.Array, its: jax.Array) -> None:
        largest = max(1.0, float(jnp.abs(its).max()))  # SRN, as it is drawn, gives up to 8
        np.testing.assert_allclose(ours, its, atol=self.rounding * largest, rtol=0)


@functools.cache
def compiled(name: str, size: str) -> Compiled:
    return Compiled(name, size)


def random_clip(time: int, batch: int = 1, seed: int = 0) -> jax.Array:
    shape = (batch, time, HEIGHT, WIDTH, 3)
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


@every_preset
@narrow_and_full
@pytest.mark.parametrize("time", [1, pytest.param(2, marks=pytest.mark.stress), LONGEST])
def test_stream_equals_clip_for_odd_sizes_and_lengths(name: str, size: str, time: int) -> None:
    model = compiled(name, size)
    clip = random_clip(time, batch=2)
    restored = model.restore(clip)
    chex.assert_shape(restored, clip.shape)
    chex.assert_type(restored, jnp.float32)
    chex.assert_tree_all_finite(restored)
    # 1e-5 is asked of STRCNN and 1e-4 of the attention network.
    model.assert_equal(model.stream(clip), restored)


@every_preset
@narrow_and_full
def test_a_video_does_not_depend_on_its_neighbours_in_the_batch(name: str, size: str) -> None:
    model = compiled(name, size)
    one, other, third = (random_clip(LONGEST, seed=seed)[0] for seed in (1, 2, 3))
    together = model.restore(jnp.stack([one, other]))
    changed = model.restore(jnp.stack([one, third]))
    if not model.model.clips_are_independent:  # said to depend, so it must
        assert float(jnp.abs(together[0] - changed[0]).max()) > 0.1
    else:
        np.testing.assert_allclose(together[0], changed[0], atol=1e-6)
    assert float(jnp.abs(together[1] - changed[1]).max()) > 1e-3


@every_preset
@pytest.mark.stress
def test_with_and_without_jit(name: str) -> None:
    model = compiled(name, "full")
    clip = random_clip(1)
    plainly = model.model.restore_clip(clip)
    model.assert_equal(plainly, model.restore(clip))


@every_gradient
@narrow_and_full
def test_gradients_are_finite_and_reach_every_parameter(name: str, size: str) -> None:
    model = compiled(name, size)
    clip = random_clip(LONGEST)
    # Where weights begin at zero, no gradient passes them at first.
    rng = np.random.default_rng(0)
    moved = {
        name: array + 0.01 * (rng.random(array.shape, np.float32) - 0.5)
        for name, array in model.parameters.items()
    }

    def loss(parameters: Any) -> jax.Array:
        levels = model.rebuild(parameters).restore_levels(clip)
        return sum(jnp.mean((level - 0.3) ** 2) for level in levels)

    gradients = jax.jit(jax.grad(loss))(moved)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, model.parameters)
    chex.assert_tree_all_finite(gradients)
    without = [key for key, gradient in gradients.items() if not np.any(np.asarray(gradient))]
    assert not without, f"no gradient reaches {without}"


@every_preset
def test_saved_and_loaded_it_is_the_same_model(name: str, tmp_path: Any) -> None:
    model = compiled(name, "narrow")
    path = tmp_path / "weights.safetensors"
    export_weights(LoadedModel(model.model, name, model.network, 7, "test", {}), path)
    loaded = load_model(path)
    assert loaded.network == model.network
    assert loaded.step == 7
    chex.assert_trees_all_equal(split(loaded.model)[1], model.parameters)


def test_the_example_extension_is_covered() -> None:
    assert "temporal_mean" in PRESETS


@every_preset
def test_no_gradient_is_summed_in_bfloat16(name: str) -> None:
    """The sum over all pixels that the gradient of a bias is: bfloat16 stops counting at 256."""
    network = narrow(PRESETS[name].network)
    if not hasattr(network, "dtype"):
        pytest.skip("it computes in float32 alone")
    rebuild, parameters = outline(
        lambda: models.build(dataclasses.replace(network, dtype="bfloat16"))
    )

    def loss(parameters: Parameters, clip: jax.Array) -> jax.Array:
        return rebuild(parameters).restore_clip(clip).sum()

    clip = jax.ShapeDtypeStruct((1, 5, 32, 32, 3), jnp.float32)
    equations = list(every_equation(jax.make_jaxpr(jax.grad(loss))(parameters, clip).jaxpr))
    in_half = [e for e in equations if any(v.aval.dtype == jnp.bfloat16 for v in e.outvars)]
    assert in_half, f"{name}: nothing computes in bfloat16; give layers dtype="
    for equation in in_half:
        if equation.primitive.name == "reduce_sum":
            summed, sums = equation.invars[0].aval.size, equation.outvars[0].aval.size
            assert summed <= 16 * sums, equation  # a few frames or channels may be


def every_equation(program: Any) -> Iterator[Any]:
    """The equations of a jaxpr, and of those inside."""
    for equation in program.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from every_equation(inner)


class OneChannel(VideoRestorer):
    """A model of one's own with a mistake that broadcasting would hide."""

    lookahead, multiple = 0, 1

    def _restore_clip(self, clip: Any) -> Any:
        return clip[..., :1]

    def _step(self, state: Any, frame: Any, repeated: Any) -> Any:
        return state, frame[:, ::2, ::2]


@dataclasses.dataclass(frozen=True)
class LeastConfig:
    """A config of one's own without scales and dtype."""

    width: int = 4


class Least(VideoRestorer):
    """A network that knows neither."""

    lookahead, multiple = 0, 1

    def __init__(self, config: LeastConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.conv = Conv(3, config.width, rngs=rngs)
        self.head = Conv(config.width + 1, 3, rngs=rngs)

    def _restore_clip(self, clip: Any) -> Any:
        return self.head(self.conv(clip))


def test_a_config_needs_neither_scales_nor_dtype_and_wrong_channels_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry._MODELS, LeastConfig, Least)
    model = models.build(LeastConfig())
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=r"a Conv of 5 input channels was given 4: \(1, 2, 6, 8, 4"):
        model.restore_clip(jnp.zeros((1, 2, 6, 8, 3)))


def test_arrays_of_the_wrong_shape_are_named() -> None:
    model, clip = OneChannel(), jnp.zeros((1, 2, 6, 8, 3))
    with pytest.raises(
        UserError, match=r"OneChannel\._restore_clip .*\(1, 2, 6, 8, 1\), not \(1, 2, 6, 8, 3\)"
    ):
        model.restore_clip(clip)
    with pytest.raises(UserError, match=r"OneChannel\._step gave an array of shape \(1, 3, 4, 3\)"):
        model.step(None, clip[:, 0])


def test_a_fusion_that_makes_the_wrong_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build(PRESETS["window_max"].network)
    fusion = type(model.fusion[0].fusion)
    monkeypatch.setattr(fusion, "fuse", lambda self, features, window: features[..., :1])
    # Users' runs do not check types as this one does.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    clip = jnp.zeros((1, 2, 16, 16, 3))
    with pytest.raises(UserError, match=r"the fusion WindowMax gave .*, 1\), not .*, 24\)"):
        jax.eval_shape(model.restore_clip, clip)
