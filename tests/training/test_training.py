"""Training: steps are pure and shared evenly by devices, runs stop and resume exactly."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx

from jaxdeblur import devices, models
from jaxdeblur.console import ProgressLine
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.errors import UserError
from jaxdeblur.models import registry
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import TrainingOutputs, VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.shapes import Batch
from jaxdeblur.testing import float32_error
from jaxdeblur.training import run as run_module
from jaxdeblur.training.loop import NonFiniteError, Stopped, run_steps
from jaxdeblur.training.run import _batches, train
from jaxdeblur.training.run_folder import Run, RunCheckpoints, save_failure
from jaxdeblur.training.step import (
    Metrics,
    TrainingConfig,
    TrainState,
    best_parameters,
    clip_loss,
    compile_train_step,
    half_squares,
    initial_train_state,
    learning_rate,
    loss_and_statistics,
    make_optimizer,
    train_step,
)
from jaxdeblur.weights.checkpoints import digest
from jaxdeblur.weights.load import load_model

NETWORK = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True, leak=0.1)
CONFIG = TrainingConfig(
    steps=6, batch_size=8, frames=2, crop=16, learning_rate=1e-3, warmup=2, save_every=3
)


def random_batch(step: int, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    sharp = rng.integers(0, 256, (size, 2, 16, 16, 3), dtype=np.uint8)
    return {"blurred": sharp // 2 + 64, "sharp": sharp}


def mesh_of(count: int) -> jax.sharding.Mesh:
    return devices.mesh_of(jax.devices()[:count])


def begin(config: TrainingConfig, mesh: jax.sharding.Mesh) -> tuple[Any, TrainState]:
    rebuild, parameters = split(models.build(NETWORK, config.seed))
    state = initial_train_state(config, parameters)
    state = jax.device_put(state, devices.replicated(mesh))
    return compile_train_step(config, rebuild, mesh), state


def feed(mesh: jax.sharding.Mesh, start: int = 0) -> Iterator[Batch]:
    step = start
    while True:
        yield jax.device_put(random_batch(step), devices.clips_over(mesh))
        step += 1


class Recorder:
    """Records the saved states and the losses."""

    def __init__(self) -> None:
        self.saved: dict[int, TrainState] = {}
        self.losses: dict[int, float] = {}

    def save(self, state: TrainState) -> None:
        self.saved[int(state.step)] = jax.tree.map(np.asarray, state)

    def step(self, step: int, metrics: Metrics) -> None:
        self.losses[step] = float(metrics.loss)


@pytest.mark.parametrize("several", [2, pytest.param(8, marks=pytest.mark.stress)])
def test_many_devices_do_what_one_does(several: int) -> None:
    results = []
    for mesh in (mesh_of(1), mesh_of(several)):
        step, state = begin(CONFIG, mesh)
        for i in range(3):
            batch = jax.device_put(random_batch(i), devices.clips_over(mesh))
            state, metrics = step(state, batch)
        assert step._cache_size() == 1, "the second step compiled again"
        results.append((jax.tree.map(np.asarray, state.parameters), float(metrics.loss)))
    (one, loss_of_one), (many, loss_of_many) = results
    assert loss_of_many == pytest.approx(loss_of_one, rel=1e-5)
    # Adam divides by a root mean square: where a gradient is nearly zero, its sign decides.
    chex.assert_trees_all_close(many, one, atol=1e-4)


@pytest.mark.parametrize("part", ["parameters", "optimizer", "average", "step"])
def test_a_checkpoint_is_known_by_all_of_its_state(part: str) -> None:
    """Otherwise a flipped bit in the optimiser's state would go unnoticed."""
    config = dataclasses.replace(CONFIG, average=0.9)
    _, parameters = split(models.build(NETWORK))
    state = initial_train_state(config, parameters)
    changed = jax.tree.map(lambda array: array + 1, getattr(state, part))
    other = state._replace(**{part: changed})
    assert digest(state) == digest(jax.tree.map(jnp.copy, state))
    assert digest(state) != digest(other)


@pytest.mark.stress
@pytest.mark.parametrize("crop", [16, 20, 36, 50])
def test_a_perfect_network_has_no_loss_at_any_scale(crop: int) -> None:
    """Also where the coarsest scale does not divide the crop."""
    network = dataclasses.replace(NETWORK, scales=(8, 4, 2, 1))
    rebuild, parameters = split(models.build(network))
    leaves_as_it_is = {
        name: jnp.zeros_like(array) if "head" in name else array
        for name, array in parameters.items()
    }
    sharp = jax.random.randint(jax.random.key(0), (1, 2, crop, crop, 3), 0, 256)
    batch = {"blurred": sharp, "sharp": sharp}
    loss, _ = loss_and_statistics(rebuild(leaves_as_it_is), batch, "mse")
    assert float(loss) < 1e-9


def test_the_loss_falls() -> None:
    config = dataclasses.replace(CONFIG, steps=40, learning_rate=1e-2, save_every=40)
    mesh = mesh_of(1)
    step, state = begin(config, mesh)
    recorder = Recorder()
    same = jax.device_put(random_batch(0), devices.clips_over(mesh))

    def again() -> Iterator[Batch]:
        while True:
            yield same

    run_steps(state, again(), step, config, save=recorder.save, watch=recorder.step)
    assert recorder.losses[40] < 0.9 * recorder.losses[1]


@pytest.mark.parametrize(("optimizer", "average"), [("adam", 0.0), ("muon", 0.9)])
@pytest.mark.stress  # tests/commands/test_train.py resumes a process that was killed
def test_resumed_from_disk_it_is_bit_identical(
    optimizer: Any, average: float, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer, average=average)
    mesh = mesh_of(2)
    step, state = begin(config, mesh)
    template = jax.tree.map(jnp.copy, state)
    recorder = Recorder()
    whole = run_steps(state, feed(mesh), step, config, save=recorder.save, watch=recorder.step)
    assert sorted(recorder.saved) == [3, 6]

    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(jax.device_put(recorder.saved[3], devices.replicated(mesh)))
    checkpoints.close()
    checkpoints = RunCheckpoints(tmp_path)
    resumed = checkpoints.restore_state(template)
    checkpoints.close()
    assert resumed is not None
    ended = run_steps(
        resumed, feed(mesh, start=3), step, config, save=recorder.save, watch=recorder.step
    )
    chex.assert_trees_all_equal(ended, whole)


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path) -> None:
    mesh = mesh_of(1)
    _, state = begin(CONFIG, mesh)
    checkpoints = RunCheckpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(state._replace(step=jnp.int32(number)))
    checkpoints.close()
    for path in (tmp_path / "checkpoints" / "2").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    checkpoints = RunCheckpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"checkpoints/2 can't be read and is skipped"):
        restored = checkpoints.restore_state(state)
    assert restored is not None
    assert int(restored.step) == 1
    # The next save must not fail because of the damaged checkpoint, which is kept beside it.
    checkpoints.go_on_after(1)
    checkpoints.save(state._replace(step=jnp.int32(2)))
    checkpoints.close()
    assert len(list((tmp_path / "checkpoints").glob("damaged-2-*"))) == 1
    again = RunCheckpoints(tmp_path).restore_state(state)
    assert again is not None
    assert int(again.step) == 2
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="can't be read"),
        pytest.raises(UserError, match="none of its 2 checkpoints can be read"),
    ):
        RunCheckpoints(tmp_path).restore_state(state)


# Orbax abandons the readers of the other arrays; Python reports them when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.stress
def test_a_damaged_array_is_one_warning(tmp_path: Path) -> None:
    _, state = begin(CONFIG, mesh_of(1))
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(state._replace(step=jnp.int32(1)))
    checkpoints.close()
    weights = tmp_path / "checkpoints" / "1" / "weights"
    template = best_parameters(state)
    files = [path for path in weights.rglob("*") if path.is_file()]
    damaged = 0
    for path in files:
        content = path.read_bytes()
        path.write_bytes(b"")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                checkpoints.restore_weights(template)
            except UserError:
                damaged += 1
                # Python's own warnings about open resources may come at any time.
                ours = [entry for entry in warned if issubclass(entry.category, UserWarning)]
                assert len(ours) == 1
        path.write_bytes(content)
    gc.collect()
    assert damaged >= 2


# The previous test leaves such readers.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_reader_that_orbax_abandons_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax abandons readers depending on timing. Here it leaves two."""
    _, state = begin(CONFIG, mesh_of(1))
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(state._replace(step=jnp.int32(1)))
    checkpoints.close()

    async def reader() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            raise ValueError("abandoned")

    def abandon(*_: object) -> None:
        begun = reader()
        begun.send(None)
        left: list[object] = [asyncio.sleep(0), begun]
        left.append(left)  # a cycle, which only gc.collect() finds
        raise ValueError("damaged")

    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: told.append(str(event.exc_value)))
    monkeypatch.setattr("jaxdeblur.weights.checkpoints.digest", abandon)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match="can be read"):
            checkpoints.restore_weights(best_parameters(state))
    assert [str(entry.message).rpartition(": ")[2] for entry in warned] == ["damaged"]
    assert "abandoned" not in told


@pytest.mark.parametrize("error", [MemoryError("8 GB"), RuntimeError("RESOURCE_EXHAUSTED: 8 GB")])
def test_memory_that_runs_out_is_no_damage(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = begin(CONFIG, mesh_of(1))
    checkpoints = RunCheckpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(state._replace(step=jnp.int32(number)))
    checkpoints.close()

    def run_out(*_: object) -> None:
        raise error

    monkeypatch.setattr("jaxdeblur.weights.checkpoints.digest", run_out)
    with pytest.raises(type(error), match="8 GB"):
        checkpoints.restore_weights(best_parameters(state))


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    _, state = begin(CONFIG, mesh_of(1))
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        checkpoints.save(state._replace(step=jnp.int32(1)))  # in the background
        with pytest.raises(UserError, match=r"checkpoints: a .* cannot be written: .* from step 0"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert RunCheckpoints(tmp_path).restore_state(state) is not None


def test_a_run_folder_that_is_removed_is_not_made_again(tmp_path: Path) -> None:
    _, state = begin(CONFIG, mesh_of(1))
    checkpoints = RunCheckpoints(tmp_path / "run")
    checkpoints.save(state)
    checkpoints.wait()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="checkpoints is gone"):
        checkpoints.save(state._replace(step=jnp.int32(1)))


def test_a_progress_line_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        line = ProgressLine("training", 2, eager=True, stays=True)
        for step in (1, 2):
            line.update(step)
        line.close()
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


@pytest.fixture
def handled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets the SIGHUP handler that a test needs, whether or not the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, getattr(request, "param", signal.SIG_DFL))
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("handled", [signal.SIG_IGN], indirect=True)
@pytest.mark.usefixtures("handled")
def test_under_nohup_a_lost_terminal_stops_nothing() -> None:
    mesh = mesh_of(1)
    step, state = begin(CONFIG, mesh)
    recorder = Recorder()

    def watched() -> Iterator[Batch]:
        for batch in feed(mesh):
            os.kill(os.getpid(), signal.SIGHUP)
            yield batch

    end = run_steps(state, watched(), step, CONFIG, save=recorder.save, watch=recorder.step)
    assert int(end.step) == CONFIG.steps


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.stress),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.stress),
    ],
)
@pytest.mark.usefixtures("handled")
def test_a_signal_saves_and_stops(number: signal.Signals) -> None:
    mesh = mesh_of(1)
    step, state = begin(CONFIG, mesh)
    recorder = Recorder()

    def interrupted() -> Iterator[Batch]:
        for i, batch in enumerate(feed(mesh)):
            if i == 3:
                os.kill(os.getpid(), number)
            yield batch

    with pytest.raises(Stopped) as stop:
        run_steps(state, interrupted(), step, CONFIG, save=recorder.save, watch=recorder.step)
    assert stop.value.signal == number
    last = max(recorder.saved)
    assert str(stop.value) == f"stopped by {number.name} after step {last}"
    assert int(recorder.saved[last].step) == last
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_loss_that_is_not_finite_stops_with_the_batch_and_the_state_before_it() -> None:
    mesh = mesh_of(1)
    config = dataclasses.replace(CONFIG, save_every=100)
    step, state = begin(config, mesh)
    recorder = Recorder()

    def poisoned() -> Iterator[Batch]:
        for i, batch in enumerate(feed(mesh)):
            if i == 3:
                batch = {**batch, "sharp": batch["sharp"].astype(jnp.float32) * jnp.nan}
            yield batch

    with pytest.raises(NonFiniteError, match="step 4") as failure:
        run_steps(state, poisoned(), step, config, save=recorder.save, watch=recorder.step)
    assert np.isnan(failure.value.batch["sharp"]).all()
    assert int(failure.value.state.step) == 3, "the steps after the failure changed the state"
    chex.assert_tree_all_finite(failure.value.state.parameters)
    assert not recorder.saved


def test_a_gradient_that_is_not_finite_is_a_failure_too() -> None:
    """The loss is finite, but the square root of the factor has no finite slope at 0."""
    state = initial_train_state(CONFIG, {"factor": jnp.float32(0)})
    state, metrics = train_step(
        state, flat_batch(51, 102), config=CONFIG, rebuild=lambda p: Times(jnp.sqrt(p["factor"]))
    )
    assert bool(jnp.isfinite(metrics.loss))
    assert bool(metrics.failed)
    assert (int(state.step), float(state.parameters["factor"])) == (0, 0)


def test_a_failure_leaves_its_batch_and_the_parameters_before_it(tmp_path: Path) -> None:
    _, parameters = split(models.build(NETWORK))
    batch = random_batch(0, size=4)
    state = initial_train_state(CONFIG, parameters)
    shared = jax.device_put(batch, devices.clips_over(mesh_of(2)))
    path = save_failure(tmp_path, NonFiniteError(4, shared, state))
    assert path.name == "failure-000004-process-0.safetensors"
    expected = {f"batch/{name}": array for name, array in batch.items()}
    expected |= {f"parameters/{name}": np.asarray(array) for name, array in parameters.items()}
    chex.assert_trees_all_equal(safetensors.numpy.load_file(path), expected)


def test_a_run_s_weights_are_finite_and_compute_as_asked_for(tmp_path: Path) -> None:
    Run("test", NETWORK, CONFIG, DataConfig()).write(tmp_path)
    _, state = begin(CONFIG, mesh_of(1))
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.wait()
    loaded = load_model(tmp_path, dtype="bfloat16")
    assert loaded.model.dtype == loaded.network.dtype == "bfloat16"
    checkpoints.save(
        state._replace(
            step=jnp.int32(1), parameters=jax.tree.map(lambda a: a * jnp.nan, state.parameters)
        )
    )
    checkpoints.close()
    with pytest.raises(UserError, match=f"{tmp_path}: .* is not finite"):
        load_model(tmp_path)


def test_what_is_due_is_saved_before_a_validation_that_fails() -> None:
    config = dataclasses.replace(CONFIG, validate_every=3, save_every=3)
    mesh = mesh_of(1)
    step, state = begin(config, mesh)
    recorder = Recorder()

    def validate(step: int, parameters: Any) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_steps(
            state,
            feed(mesh),
            step,
            config,
            save=recorder.save,
            watch=recorder.step,
            validate=validate,
        )
    assert list(recorder.saved) == [3]


def test_validation_sees_the_moving_average() -> None:
    config = dataclasses.replace(CONFIG, steps=7, average=0.99, validate_every=3)
    mesh = mesh_of(1)
    step, state = begin(config, mesh)
    recorder = Recorder()
    seen = {}

    def validate(step: int, parameters: Any) -> None:
        seen[step] = jax.tree.map(np.asarray, parameters)

    end = run_steps(
        state, feed(mesh), step, config, save=recorder.save, watch=recorder.step, validate=validate
    )
    # The last step is always validated and saved, even if neither is due.
    assert sorted(seen) == sorted(recorder.saved) == [3, 6, 7]
    chex.assert_trees_all_equal(seen[7], end.average)
    assert any(np.any(seen[7][name] != end.parameters[name]) for name in end.parameters)


def test_losses_by_hand() -> None:
    restored = jnp.zeros((2, 1, 2, 2, 3)).at[0].set(0.5).at[1].set(0.1)
    sharp = jnp.zeros((2, 1, 2, 2, 3))
    assert clip_loss(restored, sharp, "mse") == pytest.approx((0.25 + 0.01) / 2)
    charbonnier = (np.sqrt(0.25 + 1e-6) + np.sqrt(0.01 + 1e-6)) / 2
    assert clip_loss(restored, sharp, "charbonnier") == pytest.approx(charbonnier)
    log = (np.log(0.25 + 1e-4) + np.log(0.01 + 1e-4)) / 2
    assert clip_loss(restored, sharp, "log_mse") == pytest.approx(log, rel=1e-5)


def test_schedules() -> None:
    cosine = learning_rate(TrainingConfig(steps=100, learning_rate=1.0, warmup=10))
    assert float(cosine(0)) == pytest.approx(0.1)
    assert float(cosine(50)) == pytest.approx(0.5)
    assert float(cosine(100)) == pytest.approx(0, abs=float32_error(4))
    halve = learning_rate(
        TrainingConfig(learning_rate=1.0, warmup=0, schedule="halve", halve_every=20, batch_size=2)
    )
    assert [float(halve(step)) for step in (9, 10, 29)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_rates_are_of_the_parameters_that_they_name(optimizer: str) -> None:
    _, parameters = split(models.build(NETWORK))
    gradients = {name: jnp.ones_like(array) for name, array in parameters.items()}

    def updates(*rates: str) -> dict[str, jax.Array]:
        config = dataclasses.replace(CONFIG, optimizer=optimizer, rates=rates)
        chain = make_optimizer(config)
        return jax.jit(chain.update)(gradients, jax.jit(chain.init)(parameters), parameters)[0]

    plain, own = updates(), updates("beta_logit=30", "compare=0")
    for name in parameters:
        factor = {"blending/beta_logit": 30, "blending/compare/kernel": 0}.get(name, 1)
        np.testing.assert_allclose(own[name], factor * plain[name], rtol=1e-5)
    with pytest.raises(UserError, match="--rates: 'beta' is not NAME=FACTOR"):
        dataclasses.replace(CONFIG, rates=("beta",))


def test_a_rate_of_no_parameter_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, rates=("beta_logit=30", "beta_logits=30"))
    with pytest.raises(UserError, match="--rates: no parameter has 'beta_logits'"):
        train(Run("test", NETWORK, config, DataConfig()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_muon_takes_the_kernels_and_adam_the_rest() -> None:
    _, parameters = split(models.build(NETWORK))
    config = dataclasses.replace(
        CONFIG, optimizer="muon", learning_rate=1.0, warmup=0, schedule="constant"
    )
    optimizer = make_optimizer(config)
    gradients = {
        name: jnp.full_like(a, 1e-3) * jnp.arange(1, a.size + 1).reshape(a.shape) ** 0.5
        for name, a in parameters.items()
    }
    kernel = "encoder/0/first/kernel"
    gradients[kernel] = jax.random.normal(jax.random.key(0), gradients[kernel].shape)
    updates, _ = jax.jit(optimizer.update)(
        gradients, jax.jit(optimizer.init)(parameters), parameters
    )
    update = updates[kernel]
    # An orthogonal matrix times sqrt(its longer side) * 0.4 has root mean square 0.4; Muon's few
    # iterations bring the singular values of a random matrix to 0.7 to 1.2 times that.
    assert 0.28 < float(jnp.sqrt(jnp.mean(update**2))) < 0.48
    # Adam's first step (here with Nesterov's momentum) is the same in every element.
    for name in ("head/kernel", "stem/bias", "blending/beta_logit"):
        np.testing.assert_allclose(updates[name], updates["head/bias"][0], rtol=1e-3)
    assert float(jnp.std(jnp.abs(update))) > 0.01


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("frames", 300_000_000),
        ("crop", 8),
        ("crop", 4096),
        ("learning_rate", -1.0),
        ("average", 1.0),
        ("learning_rate", float("nan")),
        ("warmup", -1),
    ],
)
def test_a_bad_option_is_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match="--" + field.replace("_", "-")):
        TrainingConfig(**{field: value})


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="--batch-size=3 must be a multiple of the 8 dev"):
        devices.make_mesh(3)


@pytest.mark.stress
def test_a_train_step_of_the_attention_network_over_a_mesh() -> None:
    """Its kernels receive the clips' sharding; the result equals that of one device."""
    config = dataclasses.replace(CONFIG, batch_size=2)
    network = FstaConfig(
        window=3,
        widths=(4,),
        growths=(4,),
        dense_layers=1,
        encoder_blocks=(1,),
        decoder_blocks=(1,),
        attention_levels=(0,),
        spatial_maps=2,
        temporal_maps=2,
    )
    losses = []
    for mesh in (mesh_of(1), mesh_of(2)):
        rebuild, parameters = split(models.build(network))
        state = initial_train_state(config, parameters)
        state = jax.device_put(state, devices.replicated(mesh))
        step = compile_train_step(config, rebuild, mesh)
        batch = jax.device_put(random_batch(0, size=2), devices.clips_over(mesh))
        _, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class Times(VideoRestorer):
    """A network that multiplies by its one parameter."""

    multiple = 1

    def __init__(self, factor: float | jax.Array) -> None:
        self.factor = nnx.Param(jnp.asarray(factor))

    def _restore_clip(self, clip: jax.Array) -> jax.Array:
        return clip * self.factor[...]


def flat_batch(blurred: int, sharp: int) -> Batch:
    return {
        "blurred": jnp.full((1, 2, 16, 16, 3), blurred, jnp.uint8),
        "sharp": jnp.full((1, 2, 16, 16, 3), sharp, jnp.uint8),
    }


def test_the_network_sees_the_blurred_frames_and_is_to_give_the_sharp_ones() -> None:
    """If they were swapped, it would learn to blur, and its loss would fall just as well."""
    losses = [
        float(loss_and_statistics(Times(2.0), flat_batch(*pair), "mse")[0])
        for pair in ((51, 102), (102, 51))
    ]
    assert losses == pytest.approx([0, 0.6**2], abs=1e-4)


class Estimates(VideoRestorer):
    """A network of two estimates with their own targets and a running mean of the input."""

    def __init__(self, factor: float, mean: float) -> None:
        self.factor = nnx.Param(jnp.asarray(factor))
        self.running_mean = nnx.Param(jnp.asarray(mean))

    def training_outputs(self, clip: jax.Array, sharp: jax.Array) -> TrainingOutputs:
        moved = {"running_mean": 0.5 * (self.running_mean[...] + clip.mean())}
        return TrainingOutputs((self.factor[...] * clip, clip), (sharp, 2 * sharp), moved)


def test_a_network_may_have_several_targets_and_running_statistics() -> None:
    rebuild, parameters = split(Estimates(1.0, mean=1.0))
    assert float(
        loss_and_statistics(rebuild(parameters), flat_batch(51, 102), "mse")[0]
    ) == pytest.approx(0.2**2 + 0.6**2, rel=1e-4)
    config = dataclasses.replace(CONFIG, average=0.9, weight_decay=0.1, optimizer="muon")
    state = initial_train_state(config, parameters)
    assert "running_mean" not in str(jax.tree_util.tree_flatten_with_path(state.optimizer)[0])
    state, _ = train_step(state, flat_batch(51, 102), config=config, rebuild=rebuild)
    assert float(state.parameters["running_mean"]) == pytest.approx(0.6)
    assert float(state.average["running_mean"]) == pytest.approx(0.6)
    assert float(state.parameters["factor"]) != 1.0


def test_clips_keep_their_names_on_the_way_to_the_devices() -> None:
    batch = {name: np.asarray(clips) for name, clips in flat_batch(51, 102).items()}
    (placed,) = devices.global_batches(iter([batch]), mesh_of(1))
    for name, clips in batch.items():
        np.testing.assert_array_equal(placed[name], clips)


FEW = {
    "stem/kernel": jnp.arange(1.0, 13.0).reshape(1, 1, 3, 4),
    "stem/bias": jnp.array([0.5, -2.0, 1.0, 3.0]),
    "head/kernel": jnp.ones((1, 1, 4, 3)),
}
"""Some parameters that Muon updates and some that Adam updates."""


def test_weight_decay_is_in_the_loss_and_of_the_kernels_alone() -> None:
    """It is half the decay times the kernels' sum of squares; biases and beta are left out."""
    assert float(half_squares(FEW | {"beta_logit": jnp.float32(9)})) == 0.5 * (650 + 12)
    network = dataclasses.replace(NETWORK, blending="middle")
    rebuild, parameters = split(models.build(network))
    batch = jax.tree.map(jnp.asarray, random_batch(0))
    with_and_without = [
        jax.jit(functools.partial(train_step, config=config, rebuild=rebuild))(
            initial_train_state(config, parameters), batch
        )[1].loss
        for config in (CONFIG, dataclasses.replace(CONFIG, weight_decay=0.5))
    ]
    decay = 0.5 * float(half_squares(parameters))
    assert float(with_and_without[1] - with_and_without[0]) == pytest.approx(decay, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_gradient_above_the_norm_is_scaled_down_to_it(optimizer: Any) -> None:
    """Compares the optimisers' states: Adam divides by its own, so its step hardly changes."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer, clip_norm=0.5)
    rule = make_optimizer(config)
    start, length = rule.init(FEW), optax.tree.norm(FEW)

    @jax.jit
    def remembered(norm: float) -> Any:
        return rule.update(jax.tree.map(lambda a: norm * a / length, FEW), start, FEW)[1]

    chex.assert_trees_all_close(remembered(50.0), remembered(0.5), rtol=1e-4, atol=1e-9)
    half, whole = (optax.tree.norm(remembered(norm)) for norm in (0.25, 0.5))
    assert float(half) < float(whole)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_beta2_is_the_decay_of_adams_second_moment(optimizer: Any) -> None:
    """Two steps with gradients 0.3 and 0.1, by Kingma & Ba's algorithm 1."""
    config = dataclasses.replace(
        CONFIG, optimizer=optimizer, learning_rate=1.0, warmup=0, schedule="constant", beta2=0.5
    )
    rule = make_optimizer(config)
    parameters = {"w": jnp.zeros(1)}
    state = rule.init(parameters)
    for gradient in (0.3, 0.1):
        updates, state = rule.update({"w": jnp.full(1, gradient)}, state, parameters)
    mean = (0.9 * 0.1 * 0.3 + 0.1 * 0.1) / (1 - 0.9**2)
    square = (0.5 * 0.5 * 0.3**2 + 0.5 * 0.1**2) / (1 - 0.5**2)
    if optimizer == "muon":  # Adam with Nesterov's momentum, which looks a step ahead
        mean = 0.9 * (0.9 * 0.1 * 0.3 + 0.1 * 0.1) / (1 - 0.9**3) + 0.1 * 0.1 / (1 - 0.9**2)
    assert float(updates["w"][0]) == pytest.approx(-mean / square**0.5, rel=1e-4)


def test_the_moving_average_by_hand() -> None:
    """It is validated and saved. Its decay is small at first, then as configured."""
    config = dataclasses.replace(CONFIG, average=0.15, learning_rate=0.1, warmup=0)
    state = initial_train_state(config, {"factor": jnp.float32(0.5)})
    average = 0.5
    for decay in (1 / 10, 0.15, 0.15):
        state, _ = train_step(
            state, flat_batch(51, 102), config=config, rebuild=lambda p: Times(p["factor"])
        )
        now = float(state.parameters["factor"])
        average = decay * average + (1 - decay) * now
        assert float(state.average["factor"]) == pytest.approx(average, rel=1e-5)
    assert now > 0.7


def test_the_weights_of_a_checkpoint_are_the_moving_average(tmp_path: Path) -> None:
    """The average is scored, exported and used; the parameters are needed to resume."""
    _, state = begin(dataclasses.replace(CONFIG, average=0.9), mesh_of(1))
    average = jax.tree.map(lambda array: array + 1, state.average)
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(state._replace(step=jnp.int32(1), average=average))
    checkpoints.close()
    found = checkpoints.restore_weights(average)
    assert found is not None
    chex.assert_trees_all_equal(found[1], average)


def test_as_many_checkpoints_are_kept_as_was_asked_for(tmp_path: Path) -> None:
    _, state = begin(CONFIG, mesh_of(1))
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    for number in (1, 2, 3):
        checkpoints.save(state._replace(step=jnp.int32(number)))
    checkpoints.close()
    assert checkpoints.steps() == [3]


@pytest.mark.parametrize("render", ["host", "device"])
def test_a_run_tells_whoever_makes_its_batches_all_that_they_depend_on(
    render: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wrong first step, a resumed run would see the same clips again; without a motion
    limit, there would be no curriculum."""
    told: dict[str, Any] = {}

    @contextlib.contextmanager
    def by_the_host(*_: object, **options: Any) -> Iterator[Any]:
        assert options["render"]
        told.update(options)
        yield iter(())

    monkeypatch.setattr(run_module, "batches", by_the_host)

    def by_the_device(*_: object, **options: Any) -> Iterator[Any]:
        told.update(options)
        return iter(())

    monkeypatch.setattr(run_module, "render_on_device", by_the_device)
    monkeypatch.setattr(TrainingData, "train", [])
    data = DataConfig(render=render, curriculum=0.5, curriculum_start=4.0)  # type: ignore[arg-type]
    run = Run("test", NETWORK, dataclasses.replace(CONFIG, steps=100, seed=5), data)
    with _batches(run, TrainingData(data), (2, 1), mesh_of(8), 7):
        assert (told["seed"], told["start_step"], told["batch_size"]) == (5, 7, 8)
        assert [told["motion_limit"](step) for step in (0, 25, 50)] == [4, 5, float("inf")]


def test_another_seed_draws_other_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Built(Exception):
        pass

    def build(network: Any, seed: int = 0) -> Any:
        raise Built(seed)

    monkeypatch.setattr(registry, "build", build)
    config = dataclasses.replace(CONFIG, seed=5)
    run = Run("test", NETWORK, config, DataConfig())
    with pytest.raises(Built, match="5"):
        train(run, tmp_path / "run")
