"""The contract of models, tested for every preset; new presets are covered automatically.

``jaxdeblur.testing`` has the checks of the two views, which authors of extensions run too.

``make test`` runs them on our networks with fewer channels, blocks and scales, which compile in a
fraction of the time; ``make stress`` runs them on every network at full size, including the peers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models import registry
from jaxdeblur.models.layers import Conv
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import load_extension
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.presets import PRESETS
from jaxdeblur.shapes import Parameters
from jaxdeblur.testing import assert_same_frames, check_model, random_clip
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

LONGEST = 7

# Loading the example extensions adds their presets: they have to keep the contract too.
for _example in ("temporal_mean", "window_max"):
    load_extension(Path(__file__).parents[2] / "examples" / f"{_example}.py")

# The systems of Table 1 take long to compile; each has tests of its own (tests/table1).
PEERS = ("dbn", "edvr", "ifi_rnn", "rdn", "srn", "stfan")


def _needs_stress(name: str) -> bool:
    """Returns whether it is a peer, or a variant of our networks in size, recipe or fusion."""
    return name.startswith(PEERS) or name.endswith(("_gopro", "_small", "_concat"))


every_preset = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.stress] * _needs_stress(name))
        for name in sorted(PRESETS)
    ],
)
narrow_and_full = pytest.mark.parametrize(
    "size", ["narrow", pytest.param("full", marks=pytest.mark.stress)]
)

# The upper limits of ``narrow`` for fields of our networks.
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
    """Returns the config with fewer channels, blocks and scales, otherwise unchanged."""

    if not type(network).__module__.startswith("jaxdeblur."):
        return network
    if isinstance(network, PathsConfig):
        base, fusion = narrow(network.base), narrow(network.fusion)
        return dataclasses.replace(network, base=base, fusion=fusion)

    def least(value: Any, most: int) -> Any:
        return tuple(min(v, most) for v in value) if isinstance(value, tuple) else min(value, most)

    held = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    less = {name: least(held[name], most) for name, most in NARROW.items() if name in held}
    if "scales" in held:
        less["scales"] = held["scales"][-2:]
    return dataclasses.replace(network, **less)


def alone(network: Any) -> Any:
    """Returns the network's config, and of a system that of the network that is trained."""
    return network.fusion if isinstance(network, PathsConfig) else network


@every_preset
@narrow_and_full
def test_a_preset_keeps_the_contract(name: str, size: str) -> None:
    network = alone(PRESETS[name].network)
    if size == "full":
        preset = dataclasses.replace(PRESETS[name], network=network)
        check_model(preset, lengths=(1, 2, LONGEST))
    else:
        preset = dataclasses.replace(PRESETS[name], network=narrow(network))
        # Gradients of the other peers are compiled at full size only.
        quick = ("dbn_small", "ifi_rnn_small", "srn_small", "stfan_small")
        gradients = name in quick or not name.startswith(PEERS)
        check_model(preset, lengths=(1, LONGEST), gradients=gradients)


@every_preset
@pytest.mark.stress
def test_with_and_without_jit(name: str) -> None:
    model = models.build(alone(PRESETS[name].network))
    clip = random_clip(1, channels=model.channels)
    rebuild, parameters = split(model)
    compiled = jax.jit(lambda parameters: rebuild(parameters).restore_clip(clip))(parameters)
    assert_same_frames(model, model.restore_clip(clip), compiled)


@every_preset
def test_saved_and_loaded_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    network = narrow(PRESETS[name].network)
    model, path = models.build(network, seed=1), tmp_path / "weights.safetensors"
    export_weights(LoadedModel(model, name, network, 7, "test", {}), path)
    loaded = load_model(path)
    assert loaded.network == network
    assert loaded.step == 7
    chex.assert_trees_all_equal(split(loaded.model)[1], split(model)[1])


def test_the_example_extension_is_covered() -> None:
    assert "temporal_mean" in PRESETS


@every_preset
def test_no_gradient_is_summed_in_bfloat16(name: str) -> None:
    """The gradient of a bias is a sum over all pixels; in bfloat16 counting stops at 256."""
    network = narrow(alone(PRESETS[name].network))
    if not hasattr(network, "dtype"):
        pytest.skip("it computes in float32 alone")
    model = models.build(dataclasses.replace(network, dtype="bfloat16"))
    rebuild, parameters = split(model)

    def loss(parameters: Parameters, clip: jax.Array) -> jax.Array:
        return rebuild(parameters).restore_clip(clip).sum()

    clip = jax.ShapeDtypeStruct((1, 5, 32, 32, model.channels), jnp.float32)
    equations = list(every_equation(jax.make_jaxpr(jax.grad(loss))(parameters, clip).jaxpr))
    in_half = [e for e in equations if any(v.aval.dtype == jnp.bfloat16 for v in e.outvars)]
    assert in_half, f"{name}: nothing computes in bfloat16; give layers dtype="
    for equation in in_half:
        if equation.primitive.name == "reduce_sum":
            summed, sums = equation.invars[0].aval.size, equation.outvars[0].aval.size
            assert summed <= 16 * sums, equation  # a few frames or channels are fine


def every_equation(program: Any) -> Iterator[Any]:
    """Yields the equations of a jaxpr and of the jaxprs inside."""
    for equation in program.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from every_equation(inner)


class Kept(VideoRestorer):
    """A model that keeps the contract unless its config names a breach."""

    lookahead, multiple = 0, 1

    def __init__(self, config: KeptConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.conv = Conv(3, 3, rngs=rngs)
        self.unused = Conv(3, 3, rngs=rngs) if config.breach == "gradient" else None
        self.clips_are_independent = config.breach != "independent"

    def _restore_clip(self, clip: Any) -> Any:
        breach, restored = self.config.breach, self.conv(clip)
        if breach == "neighbour":
            return restored + clip.mean()
        if breach == "nan":
            return restored.at[0, 0, 0, 0].set(jnp.nan)
        return restored.astype(jnp.bfloat16) if breach == "dtype" else restored

    def _initial_state(self, batch: int, height: int, width: int) -> Any:
        return jnp.zeros((batch, 1), jnp.int32)

    def _step(self, state: Any, frame: Any, repeated: Any) -> tuple[Any, Any]:
        restored = self.conv(frame)
        if self.config.breach == "stream":
            restored = restored + 0.01
        if self.config.breach == "neighbour":
            restored = restored + frame.mean()
        grown = jnp.concatenate([state, state], axis=1)
        return grown if self.config.breach == "state" else state + 1, restored


class OneChannel(VideoRestorer):
    """A user's model with a mistake that broadcasting would hide."""

    lookahead, multiple = 0, 1

    def _restore_clip(self, clip: Any) -> Any:
        return clip[..., :1]

    def _step(self, state: Any, frame: Any, repeated: Any) -> Any:
        return state, frame[:, ::2, ::2]


@dataclasses.dataclass(frozen=True)
class KeptConfig:
    breach: str = ""


BREACHES = {
    "": None,
    "stream": "differ",
    "state": "shape",
    "dtype": "type",
    "nan": "finite",
    "neighbour": "neighbour",
    "independent": "but the clips are",
    "gradient": "no gradient reaches .*unused",
}


@pytest.mark.parametrize("breach", BREACHES)
def test_check_model_finds_what_breaks_the_contract(
    breach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._MODELS, KeptConfig, Kept)
    preset = dataclasses.replace(PRESETS["temporal_mean"], network=KeptConfig(breach))
    if breach:
        with pytest.raises(AssertionError, match=BREACHES[breach]):
            check_model(preset, lengths=(1,))
    else:
        check_model(preset, lengths=(1,))


@dataclasses.dataclass(frozen=True)
class LeastConfig:
    """A user's config without scales and dtype."""


class Least(VideoRestorer):
    """A network that uses neither, and does not say how far it reads."""

    lookahead, multiple = 0, 1

    def __init__(self, config: LeastConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config

    def _restore_clip(self, clip: Any) -> Any:
        return clip


def test_a_config_needs_neither_scales_nor_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._MODELS, LeastConfig, Least)
    assert models.build(LeastConfig()).lookahead == 0


def test_arrays_of_the_wrong_shape_are_named() -> None:
    model, clip = OneChannel(), jnp.zeros((1, 2, 6, 8, 3))
    with pytest.raises(
        UserError, match=r"OneChannel\._restore_clip .*\(1, 2, 6, 8, 1\), not \(1, 2, 6, 8, 3\)"
    ):
        model.restore_clip(clip)
    with pytest.raises(UserError, match=r"OneChannel\._step returned .* shape \(1, 3, 4, 3\)"):
        model.step(None, clip[:, 0])


def test_a_model_without_receptive_radius_is_not_cut_into_tiles() -> None:
    with pytest.raises(UserError, match="Least has no receptive_radius, so frames can't be"):
        _ = Least(LeastConfig(), rngs=nnx.Rngs(0)).halo


@pytest.mark.parametrize(
    "name",
    [
        "edvr_small",
        "strcnn_dtb_small",
        *(pytest.param(peer, marks=pytest.mark.stress) for peer in ("rdn_small", "srn_small")),
    ],
)
def test_a_network_that_saves_memory_recomputes(name: str) -> None:
    model = models.build(PRESETS[name].network)
    clip = jax.ShapeDtypeStruct((1, 2, 64, 64, 3), jnp.float32)

    def recomputes() -> bool:
        return "remat" in str(jax.make_jaxpr(model.restore_clip)(clip))

    assert not recomputes()
    model.save_memory()
    assert recomputes()
