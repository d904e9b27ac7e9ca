"""Networks side by side at several sizes, and the gates that choose between them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import export, models, training
from jaxdeblur.checkpoints import LoadedModel, export_weights, load_model
from jaxdeblur.data.sources import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.models.layers import enlarge, reduce_size
from jaxdeblur.models.parameters import Parameters, split
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.runs import starting_parameters
from jaxdeblur.training import TrainingConfig

CHAIN = StrcnnConfig(
    m=1, width=4, blocks=1, head_width=0, residual=True, leak=0.1, scales=(4, 2, 1)
)
CHOICE = dataclasses.replace(CHAIN, choose_scale=True)
FIRM = 30.0  # A gate's logit at which it takes all, or with a minus nothing.


def draw_clip(height: int = 24, width: int = 32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((1, 4, height, width, 3)), jnp.float32)


def firmly(parameters: Parameters, *biases: tuple[float, ...]) -> Parameters:
    """The gates decide the same everywhere: (own, coarser) for each level, coarse to fine."""
    fixed = dict(parameters)
    for i, bias in enumerate(biases):
        fixed[f"gates/{i}/head/kernel"] = 0 * parameters[f"gates/{i}/head/kernel"]
        fixed[f"gates/{i}/head/bias"] = jnp.array(bias)
    return fixed


def test_closed_gates_leave_every_bit_of_the_frames() -> None:
    rebuild, parameters = split(models.build(CHOICE))
    closed = firmly(parameters, (-FIRM,), (-FIRM, -FIRM), (-FIRM, -FIRM))
    clip = draw_clip()
    assert np.array_equal(rebuild(closed).restore_clip(clip), clip)
    assert float(jnp.abs(rebuild(parameters).restore_clip(clip) - clip).max()) > 1e-3


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_gates_open_for_one_level_give_what_it_restores_by_itself(scale: int) -> None:
    model = models.build(CHOICE)
    rebuild, parameters = split(model)
    biases = [(-FIRM,), (-FIRM, FIRM), (-FIRM, FIRM)]
    which = CHOICE.scales.index(scale)
    biases[which] = (FIRM, -FIRM)[: len(biases[which])]
    clip = draw_clip()
    restored = rebuild(firmly(parameters, *biases)).restore_clip(clip)
    reduced = reduce_size(clip, scale)
    residual = model.levels[which].restore_clip(reduced) - reduced
    assert float(jnp.abs(residual).max()) > 1e-3
    for _ in range(which, len(CHOICE.scales) - 1):
        residual = enlarge(residual, 2)
    np.testing.assert_allclose(restored, clip + residual, atol=1e-6)


def test_no_level_waits_for_another() -> None:
    assert models.build(CHOICE).lookahead == CHOICE.m
    assert models.build(CHAIN).lookahead == CHOICE.m * len(CHAIN.scales)


def test_each_scale_is_half_of_the_one_before() -> None:
    with pytest.raises(UserError, match="each is half"):
        models.build(dataclasses.replace(CHOICE, scales=(4, 1)))


def test_one_step_reads_as_far_as_it_says() -> None:
    config = dataclasses.replace(CHOICE, m=0, scales=(2, 1))
    model = models.build(config)
    rebuild, parameters = split(model)
    # Small, so that no gate is wide open or shut; positive, so that nothing is cut off by a ReLU.
    parameters = {name: 0.1 * jnp.abs(array) + 0.01 for name, array in parameters.items()}
    frame = draw_clip(8, 160)[:, 0]
    state, _ = rebuild(parameters).step(model.initial_state(1, 8, 160), frame)
    restore = jax.jit(lambda f: rebuild(parameters).step(state, f)[1])
    reach = []
    for column in (80, 81):
        difference = restore(frame.at[:, :, column].add(0.5)) - restore(frame)
        moved = np.flatnonzero(np.abs(difference).max(axis=(0, 1, 3)))
        reach.append(np.abs(moved - column).max())
    assert max(reach) <= model.receptive_radius
    assert max(reach) >= 0.5 * model.receptive_radius


def test_the_gates_alone_can_be_trained() -> None:
    rebuild, parameters = split(models.build(CHOICE))
    config = TrainingConfig(steps=10, batch_size=1, crop=32, optimizer="muon", train_only="gates")
    state = training.initial_train_state(config, parameters)
    clip = np.asarray(255 * draw_clip()).astype(np.uint8)
    batch = {"blurred": clip, "sharp": clip[:, ::-1]}
    step = jax.jit(lambda s, b: training.train_step(s, b, config=config, rebuild=rebuild))
    after, _ = step(state, batch)
    changed = {n for n in parameters if not np.array_equal(after.parameters[n], parameters[n])}
    assert changed == {name for name in parameters if name.startswith("gates/")}
    with pytest.raises(UserError, match="they begin with gates, levels"):
        training.initial_train_state(dataclasses.replace(config, train_only="gate "), parameters)


def test_an_exported_file_may_open_its_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for config in (CHAIN, CHOICE):
        file = tmp_path / f"{config.choose_scale}.safetensors"
        data = dataclasses.asdict(DataConfig())
        metadata = {"data": data, "training": {}}
        loaded = LoadedModel(models.build(config), "test", config, 7, "test", metadata)
        export_weights(loaded, file, metadata=metadata)
        files[config.choose_scale] = file
    opened = tmp_path / "opened.safetensors"
    command = ["export", str(files[True]), str(opened), "--licence=free", "--open-gates=1.5"]
    monkeypatch.setattr(sys, "argv", command)
    export.main()
    before, after = (split(load_model(file).model)[1] for file in (files[True], opened))
    for name, array in before.items():
        moved = 1.5 if name.startswith("gates/") and name.endswith("head/bias") else 0.0
        np.testing.assert_allclose(after[name], array + moved)
    assert load_model(opened).metadata["gates opened by"] == 1.5
    monkeypatch.setattr(sys, "argv", [command[0], str(files[False]), *command[2:]])
    with pytest.raises(UserError, match="does not choose"):
        export.main()


def test_it_starts_from_a_chain_or_from_one_network(tmp_path: Path) -> None:
    """The levels come from there, the gates are new, unless it has the same ones."""
    rebuild, drawn = split(models.build(CHOICE, seed=1))
    for config in (CHAIN, dataclasses.replace(CHAIN, scales=(1,)), CHOICE):
        there = models.build(config, seed=2)
        path = tmp_path / "there.safetensors"
        export_weights(LoadedModel(there, "test", config, 7, "test", {}), path)
        started = starting_parameters(rebuild(drawn), drawn, str(path), may_grow=True)
        finest = {"levels/2/" if config.scales != (1,) else ""}.pop()
        theirs = split(there)[1]
        for name in ("stem/kernel", "head/bias"):
            assert np.array_equal(started[f"levels/2/{name}"], theirs[finest + name])
        gate = "gates/1/first/kernel"
        assert np.array_equal(started[gate], theirs.get(gate, drawn[gate]))
