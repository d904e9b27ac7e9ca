"""Fitting the gates to the data kept from clips."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.commands import fit_gates as command
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.presets import PRESETS
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.training import fit_gates
from jaxdeblur.training.fit_gates import FitConfig, Sample, squared_error
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

# For the networks at several sizes, whose future is undecided.
pytestmark = pytest.mark.stress

ROOT = Path(__file__).resolve().parents[2]
ONE_SCALE = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True, leak=0.1)
CHOICE = dataclasses.replace(ONE_SCALE, scales=(2, 1))


@pytest.fixture(autouse=True)
def _two_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS["strcnn_dtb_choice"]
    network = dataclasses.replace(preset.network, scales=CHOICE.scales)
    changed = dataclasses.replace(preset, network=network)
    monkeypatch.setitem(PRESETS, "strcnn_dtb_choice", changed)


def write_one_scale(file: Path) -> VideoRestorer:
    """Writes the weights of a network at one scale, as training leaves them."""
    model = models.build(ONE_SCALE, seed=3)
    export_weights(LoadedModel(model, "test", ONE_SCALE, 7, "test", {}), file)
    return model


def fitting(start: Path, file: Path, *options: str) -> list[str]:
    """Returns the command for a few steps on a few small clips."""
    command = ["fit_gates", str(start), str(file), "--data", "rendered:tiny"]
    return [*command, "--clips=4", "--crop=32", "--steps=5", *options]


def logit(share: float) -> float:
    return float(np.log((share + 0.1) / (1.1 - share)))


def test_what_is_kept_gives_the_error_of_the_network() -> None:
    rebuild, parameters = split(models.build(CHOICE))
    shares = [0.3, 0.8]
    parameters["gates/head/kernel"] *= 0
    parameters["gates/head/bias"] = jnp.array([logit(share) for share in shares])
    model = rebuild(parameters)
    blurred, sharp = jnp.asarray(np.random.default_rng(0).random((2, 1, 3, 16, 24, 3)), jnp.float32)
    kept = fit_gates.sample(model, blurred, sharp)
    error = (model.restore_clip(blurred) - sharp) ** 2
    side = model.gates.cell
    cells = error.reshape(1, 3, 16 // side, side, 24 // side, side, 3).mean((3, 5, 6))
    everywhere = jnp.broadcast_to(jnp.array(shares), (1, 3, 4, 6, 2))
    np.testing.assert_allclose(model.gates(kept.evidence), everywhere, rtol=1e-5)
    np.testing.assert_allclose(squared_error(everywhere, kept.form), cells, rtol=1e-4)


def test_the_gates_learn_which_level_to_take() -> None:
    """One channel of the evidence tells whether the coarse level is right, the fine one or neither.

    Only two columns of cells contain it: all others must learn it from the whole frame.
    """
    columns = 2
    model = models.build(CHOICE)
    channels = model.gates.join.kernel.shape[2]
    rng = np.random.default_rng(0)

    def draw(clips: int) -> tuple[Sample, np.ndarray]:
        right = rng.integers(0, 3, (clips, 2, 1, 1)) * np.ones((1, 1, 4, 24), int)
        evidence = 5 + 0.1 * rng.standard_normal((clips, 2, 4, 24, channels))
        evidence[..., :columns, 0] += right[..., :columns]
        # The levels' residuals are independent of sharp - blurred, except that of the right level.
        added = np.stack([right == 0, right == 1], axis=-1).astype(float)
        factors = np.concatenate([added, np.ones_like(added[..., :1])], axis=-1)
        form = factors[..., :, None] * factors[..., None, :]
        form += np.diag([1.0, 1.0, 0.0]) * (1 - factors)[..., None]
        return Sample(evidence.astype(np.float16), form.astype(np.float32)), added

    config = FitConfig(clips=48, steps=400, batch_size=8)
    gates = fit_gates.fit(model, draw(48)[0], config)
    rebuild, parameters = split(model)
    fresh, added = draw(16)
    shares = rebuild(parameters | gates).gates(jnp.asarray(fresh.evidence, jnp.float32))
    assert float(jnp.abs(shares - added).mean()) < 0.05
    drawn = model.gates(jnp.asarray(fresh.evidence, jnp.float32))
    assert float(jnp.abs(drawn - added).mean()) > 0.3


def test_the_command_writes_a_network_whose_levels_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, file = tmp_path / "one.safetensors", tmp_path / "choice.safetensors"
    model = write_one_scale(start)
    arguments = fitting(start, file, "--frames=3", "--keep-still=1")
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    loaded = load_model(file)
    assert loaded.network == CHOICE
    assert loaded.step == 5
    there = split(loaded.model)[1]
    for name, array in split(model)[1].items():
        assert np.array_equal(there[f"level/{name}"], array)
    clip = jnp.asarray(np.random.default_rng(0).random((1, 3, 16, 16, 3)), jnp.float32)
    assert bool(jnp.isfinite(loaded.model.restore_clip(clip)).all())
    monkeypatch.setattr(sys, "argv", [*arguments, "--crop=30"])
    with pytest.raises(UserError, match="a multiple of 4"):
        command.main()


def test_what_cannot_be_fitted_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong options before the weights are read, wrong weights before a clip is drawn."""
    start = tmp_path / "attention.safetensors"
    config = FstaConfig(
        widths=(4,),
        growths=(4,),
        dense_layers=1,
        encoder_blocks=(1,),
        decoder_blocks=(1,),
        attention_levels=(0,),
    )
    export_weights(LoadedModel(models.build(config), "test", config, 7, "test", {}), start)
    file = str(tmp_path / "choice.safetensors")
    done: list[str] = []
    load = fit_gates.load_model

    def note(what: str) -> Any:
        return lambda *given: done.append(what) or (load(*given) if what == "loaded" else None)

    monkeypatch.setattr(fit_gates, "load_model", note("loaded"))
    monkeypatch.setattr(fit_gates, "draw_samples", note("drawn"))
    for arguments, said in (
        ([str(start), "choice.npz"], r"must be a \.safetensors file"),
        ([str(start), str(tmp_path / "no" / "choice.safetensors")], "in an existing folder"),
        ([str(start), file, "--curriculum=0.5"], "--curriculum applies to train.py"),
        ([str(start), file, "--render=device", "--data=rendered"], "--render applies to train.py"),
        ([str(start), file], "only an STRCNN over frames can have gates"),
    ):
        monkeypatch.setattr(sys, "argv", ["fit-gates", *arguments])
        with pytest.raises(UserError, match=said):
            command.main()
        assert done == (["loaded"] if said.startswith("only") else [])
    assert not Path(file).exists()


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"clips": 0}, {"frames": 0}, {"batch_size": 0}):
        with pytest.raises(UserError, match="not"):
            FitConfig(**wrong)
    with pytest.raises(UserError, match="must be 0 to 4294967295, not"):
        FitConfig(seed=-1)


def test_gates_of_photographs_are_fitted_to_clips_of_one_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, file = tmp_path / "one.safetensors", tmp_path / "choice.safetensors"
    write_one_scale(start)
    monkeypatch.setattr(sys, "argv", fitting(start, file, "--frames=1", "--single=1"))
    command.main()
    fitted = load_model(file)
    assert fitted.metadata["data"]["single"] == 1
    assert Deblurrer(file).of_photographs
    assert not Deblurrer(start).of_photographs
    scoring = ["evaluate.py", f"--ckpt={file}", "--data=rendered:tiny", "--max-frames=1"]
    scoring += ["--only", "rendered_00", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, *scoring], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "each frame is restored by itself" in done.stderr
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["single"] is True
