"""The benchmarks' options, comparisons and experiments; no test measures time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

import kernels
from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.models.explanation import AttentionMaps
from jaxdeblur.testing import float32_error

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark, with its options on the command line."""
    monkeypatch.syspath_prepend(str(ROOT))

    def start(command: str) -> Any:
        name, *options = command.split()
        monkeypatch.setattr(sys, "argv", [name, *options])
        return importlib.import_module(f"benchmarks.{name}")

    return start


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("table1", "give --steps, --minutes or both"),
        ("evidence tint --only nothing", "--only: choose from none; none, told"),
        ("on_video score {out}", "needs weights of one condition"),
        ("gpu_day memory --preset=nope", "--preset=nope: no such preset"),
        ("gpu_day memory --target=nope --out={out}", "--target=nope: cannot be read: No such file"),
        ("gpu_day kernels --rehearse --out=/dev/null/x", "/dev/null/x"),
        pytest.param(
            "gpu_day kernels",
            "JAX finds no GPU here",
            marks=pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU"),
        ),
        ("quality --ckpt=x --blur 8", "--blur"),
        ("quality --ckpt=nowhere", "nowhere: no such run"),
        ("speed film --model=nope", "--model=nope: no such preset"),
        ("train_step --model=nope", "--model=nope: no such preset"),
        ("train_step --model=fsta", "--model=fsta: must be an STRCNN"),
    ],
)
def test_a_bad_option_is_one_line(
    command: str,
    named: str,
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    name = f"benchmarks.{command.split()[0]}"
    with pytest.raises(SystemExit) as ended:
        run_command(benchmark(command.format(out=tmp_path)).main, name)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: error: ")
    assert said.count("\n") == 1
    assert named in said


def test_cases_take_turns_and_the_first_ones_do_not_count(benchmark: Any) -> None:
    common, begun = benchmark("common"), []

    def case(name: str) -> None:
        begun.append(name)
        time.sleep(0.2 * (len(begun) <= 2))  # as if it compiled

    seconds = common.side_by_side({name: partial(case, name) for name in "ab"}, 3)
    assert "".join(begun) == "abababab"
    assert max(seconds.values()) < 0.1


def test_the_error_of_a_gradient_is_seen(benchmark: Any) -> None:
    module = benchmark("gpu_day").kernels
    case = module.Case("softmax_expand", 3, 4, 5, 6, "float32", True)
    right = partial(kernels.softmax_expand, implementation="einsum")

    def wrong(*arguments: Any) -> Any:  # only its gradient is wrong
        result = right(*arguments)
        return 2 * result - lax.stop_gradient(result)

    arguments = case.arguments()
    assert [a.shape for a in arguments] == [(1, 12, 5), (5, 6), (6,), (1, 6, 5), (1, 12, 5)]
    exact = module.pulled(right)(*arguments)
    assert module.largest_error(case, wrong(*arguments[:-1]), exact[0]) < float32_error(64)
    assert module.largest_error(case, exact, exact) == 0
    found = module.pulled(wrong)(*arguments)
    assert module.largest_error(case, found, exact) == pytest.approx(1, rel=1e-3)


def test_bytes_are_those_of_the_pixels(benchmark: Any) -> None:
    case = benchmark("gpu_day").kernels.Case
    assert case("softmax_expand", 4, 5, 3, 8, "bfloat16", True).bytes == 20 * 5 * 3 * 2


def test_small_cases_are_known_to_fit_in_the_cache(benchmark: Any) -> None:
    case = benchmark("gpu_day").kernels.Case
    # 65536 pixels of 32 bfloat16 take 4 MB; eight million of 128 take 2 GB.
    assert case("softmax_squeeze", 256, 256, 32, 8, "bfloat16", True).in_cache
    assert not case("softmax_squeeze", 2160, 3840, 128, 64, "bfloat16", False).in_cache


def test_what_is_wrong_is_not_timed(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("gpu_day").kernels
    right = kernels.softmax_expand

    def run(*arguments: Any, implementation: str) -> Any:
        return right(*arguments, implementation="einsum") * (1 + (implementation == "mosaic"))

    monkeypatch.setattr(kernels, "softmax_expand", run)
    case = module.Case("softmax_expand", 3, 4, 5, 6, "float32", False)
    row = {"what": str(case)} | module.compared(case, ["mosaic"], 1e9, torch=False)
    timed = {name: bool(of["ms"]) for name, of in row["found"].items()}
    assert timed == {"plain": True, "einsum": True, "mosaic": False}
    assert row["found"]["mosaic"]["error"] == pytest.approx(1)


def test_a_part_goes_on_where_it_was_and_says_what_it_left(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = benchmark("gpu_day").Report
    given = SimpleNamespace(part="speed", out=tmp_path, minutes=1.0, rehearse=True)

    def works(**of: float) -> list[tuple[str, Any]]:
        return [(name, lambda value=value: {"is": 1 / value}) for name, value in of.items()]

    with report(given) as first:
        assert list(first.each(works(a=1, b=0))) == [
            {"what": "a", "is": 1.0},
            {"what": "b", "failed": True},
        ]
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err
    with report(given) as second:
        assert list(second.each(works(a=1, b=2))) == [{"what": "b", "is": 0.5}]
    assert "all tasks are done" in capsys.readouterr().out
    given.minutes = 0.01
    with report(given) as third:
        assert list(third.each(works(c=1))) == []
    assert "not done: c" in capsys.readouterr().out
    kept = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert [row["what"] for row in kept["rows"]] == ["a", "b"]
    assert kept["left"] == ["c"]


def test_a_part_is_stopped_before_its_minutes_end(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if one task never ends."""
    stopped = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: stopped.set())
    given = SimpleNamespace(part="speed", out=tmp_path, minutes=0.001, rehearse=True)
    with benchmark("gpu_day").Report(given) as report:
        report.left.append("a frame")
        assert stopped.wait(60)
    assert json.loads((tmp_path / "speed.json").read_text())["left"] == ["a frame"]


@pytest.mark.stress  # compiles an operation and its gradient
def test_the_kernels_part_is_rehearsed(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark(f"gpu_day kernels --rehearse --out={tmp_path}").main()
    rows = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))["rows"]
    assert [row["backward"] for row in rows] == [False, True]
    for row in rows:
        assert row["found"]["einsum"]["ms"] > 0
        assert row["found"]["plain"]["error"] < 1e-5
    assert "einsum" in capsys.readouterr().out


@pytest.mark.stress
def test_table_1_from_training_to_its_rows(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trains one small system for two steps; a second start repeats no training or scoring."""
    module = benchmark(
        "table1 --only STRCNN+DTB --seeds 0 --steps=2 --crop=32 --frames=2 --max-frames=2 "
        f"--batch-size=8 --max-videos=1 --speed-size=64x48 --out={tmp_path / 'out'}"
    )
    module.main()
    first = json.loads((tmp_path / "out" / "table1.json").read_text())["rows"]["STRCNN+DTB"]
    assert first["parameters"] == 87_301
    assert first["gmac"] == pytest.approx(26.8, abs=0.1)
    assert first["equal-steps"][0]["steps"] == 2
    module.main()
    again = json.loads((tmp_path / "out" / "table1.json").read_text())["rows"]["STRCNN+DTB"]
    assert again["equal-steps"] == first["equal-steps"]
    assert "| STRCNN+DTB (`strcnn_dtb_small`) | equal-steps: 2 steps of " in capsys.readouterr().out


def test_an_experiment_goes_on_where_it_was_stopped(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "results.json"
    command = f"evidence tint --only none fsta --seeds 0 1 --out={out}"
    module = benchmark(f"{command} --steps=2")
    trained: list[tuple[str, int]] = []

    def train(experiment: Any, variant: Any, steps: int, seed: int, picture: Any) -> Any:
        if len(trained) == 3:
            trained.clear()
            raise KeyboardInterrupt
        trained.append((variant.network.fusion, seed))
        restored = 0.01 if variant.network.fusion == "none" else 0.001 * 10**seed
        return module.Result(7, {"all": [0.01, restored]}, None, {}, 1.0, {})

    monkeypatch.setattr(module, "train", train)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    module.main()
    assert trained == [("fsta", 1)]  # the three before it are kept
    row = "| fsta | 7 | 2 | 25.00 ± 7.07 | +5.00 ± 7.07 |  |  | 1 |"
    assert row in capsys.readouterr().out.splitlines()
    benchmark(f"{command} --steps=2 --picture={tmp_path / 'a.png'}")
    module.main()
    assert trained == [("fsta", 1)] * 2  # the last one is trained again, for its weights
    benchmark(f"{command} --steps=3")
    with pytest.raises(UserError, match="results for other settings"):
        module.main()


@pytest.mark.stress
def test_an_experiment_trains_what_it_is_told_to(benchmark: Any, tmp_path: Path) -> None:
    module = benchmark("evidence")
    experiment = module.EXPERIMENTS["tint"]
    variant = experiment.variants["fsta, rates x30, f_s = 0"]
    picture = tmp_path / "maps.png"
    result = module.train(experiment, variant, 2, 0, picture)
    with Image.open(picture) as drawn:  # Eight clips: the input, the result and four maps.
        assert drawn.size == (8 * 3 * 50, 6 * 3 * 50)
        rows = np.asarray(drawn).reshape(6, 150, -1)
    assert (rows[2:] == 255).all()  # Maps are uniform for f_s = 0: at their maximum everywhere.
    assert rows[:2].std() > 5
    (entropy,) = result.entropy.values()
    assert entropy[0] == pytest.approx(1.0, abs=float32_error(64))  # f_s is still 0: A_s is uniform
    shown, restored = result.error["far from the mark"]
    assert 0 < restored < 2 * shown
    networks = [(v.network, v.rates, v.told, v.without) for v in experiment.variants.values()]
    assert len(set(networks)) == len(networks)


@pytest.mark.stress
def test_variants_train_on_the_same_batches(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = f"on_video train --steps=2 --batch-size=2 --seeds 0 1 --out={tmp_path}"
    module = benchmark(command)
    small = {"width": 4, "blocks": 1}
    variants = {"without": (small | {"blending": "none"}, ()), "with": (small, ("beta_logit=0",))}
    for name, value in (("VARIANTS", variants), ("FRAMES", 2), ("CROP", 16)):
        monkeypatch.setattr(module, name, value)
    begun, train_seed = [], module.train_seed

    def watched(config: Any, seed: int, missing: list[str], arguments: Any) -> Any:
        begun.append((seed, missing))
        return train_seed(config, seed, missing, arguments)

    monkeypatch.setattr(module, "train_seed", watched)
    module.main()
    (tmp_path / "with_0.safetensors").unlink()
    module.main()
    assert begun == [(0, [*variants]), (1, [*variants]), (0, ["with"]), (1, [])]
    loaded = module.load_model(tmp_path / "with_1.safetensors").model
    assert float(loaded.blending.beta) == 0.5  # its rate is 0
    config = module.TrainingConfig(steps=2, batch_size=2, frames=2, crop=16)
    mesh = module.devices.mesh_of(jax.devices()[:1])
    first, again, other = (
        np.asarray(next(module.batches(config, seed, mesh, None))["blurred"]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=(1, 2, 3, 4)).all()
    assert (first[0] != first[1]).any()

    benchmark(f"on_video score {tmp_path} --scenes tiny")
    module.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "tiny" in line]
    assert [row[1:3] for row in rows] == [["without", "2"], ["with", "2"]]
    assert [bool(row[4]) for row in rows] == [False, True]  # over the first variant
    assert [row[-1].endswith(" |") and "," in row[-1] for row in rows] == [False, True]  # w_n


@pytest.mark.parametrize(("effect", "bound"), [("add", 3.01), ("gain", 0.0), ("shift", 6.02)])
def test_who_does_not_see_the_mark_gains_no_more_than_the_bound(
    benchmark: Any, effect: str, bound: float
) -> None:
    """Best guesses without the mark: b as half of a + b, no change, or the mean of both shifts."""
    benchmark("evidence")
    tasks = importlib.import_module("benchmarks.tasks")
    errors = np.zeros(2)
    for seed in range(300):
        clip = tasks.tint(np.random.default_rng(seed), "test", effect=effect)
        (region,) = clip.regions.values()
        guess = {
            "add": lambda shown: shown - (np.median(shown) - 0.5) / 2,
            "gain": lambda shown: shown,
            "shift": lambda shown: (np.roll(shown, 3, axis=2) + np.roll(shown, -3, axis=2)) / 2,
        }[effect](clip.shown)
        errors += [np.square(x - clip.target)[region].sum() for x in (clip.shown, guess)]
        steps = np.abs(np.diff(clip.shown[1], axis=1)) > 0.45  # the checkerboard's
        row, column = np.argwhere(steps).mean(axis=0).astype(int)
        assert not region[1, row, column]
    assert 10 * np.log10(errors[0] / errors[1]) == pytest.approx(bound, abs=0.5)


def test_noise_is_new_in_each_frame_and_the_sprite_moves(benchmark: Any) -> None:
    benchmark("evidence")
    tasks = importlib.import_module("benchmarks.tasks")
    clip = tasks.still_noise(np.random.default_rng(0), "test", size=32, sprite=8)
    noise = clip.shown - clip.target
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert abs((noise[1:] * noise[:-1]).mean()) < 1e-3
    assert clip.regions["sprite"][8:].sum(axis=(1, 2)).tolist() == [64] * 16
    uncovered = clip.regions["uncovered up to 3 frames ago"]
    assert uncovered.any()
    assert not (uncovered & clip.regions["sprite"]).any()
    still = clip.regions["frames 16 to 24"]
    assert still[16:].mean() > 0.5
    background = clip.target[:, still.any(axis=0) & ~clip.regions["sprite"].any(axis=0)]
    assert np.ptp(background, axis=0).max() == 0


def test_a_line_blurs_along_itself(benchmark: Any) -> None:
    benchmark("evidence")
    tasks = importlib.import_module("benchmarks.tasks")
    point = np.zeros((48, 48))
    point[24, 24] = 1
    (across, moved) = tasks._blurred(
        point, np.array([[0.0, 0.0], [6.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 1.0]])
    )
    assert across.sum(axis=1).argmax() == 16  # 24 less the margin
    assert (across[16] > 0.4 / 6).sum() == 7  # five whole pixels and two halves
    assert np.unravel_index(moved.argmax(), moved.shape) == (18, 17)


def test_entropy_of_maps_is_against_uniform(benchmark: Any) -> None:
    module = benchmark("evidence")
    one = jnp.zeros((1, 2, 1, 2, 4)).at[..., 0, 0].set(1)
    assert module.entropies(
        AttentionMaps("block", one, jnp.full((1, 2, 3, 5), 0.2), jnp.ones((1, 2, 2, 4, 1)), (0,))
    ) == pytest.approx([0.0, 1.0, 1.0], abs=float32_error(15))


@pytest.mark.stress
def test_a_lent_gpu_is_rehearsed(tmp_path: Path) -> None:
    def found(part: str, *options: str) -> dict[str, Any]:
        given = [part, "--minutes=60", "--rehearse", f"--out={tmp_path}", *options]
        command = [sys.executable, "-m", "benchmarks.gpu_day", *given]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8"))

    frames, step = found("speed")["rows"]
    assert frames["frames_a_second"] > 0
    if torch := importlib.util.find_spec("torch"):
        assert frames["torch"]["frames_a_second"] > 0
        assert step["ms"]["training step, torch"] > 0
    assert ("torch" in frames) is bool(torch)
    training, stream, work = found("memory", "--preset=strcnn_dtb_small")["rows"]
    assert training["GiB"] >= stream["GiB"] > 0
    # By hand: 26.3 GMAC per 1280x720 frame, three times over, for 2 frames of 32x32.
    assert work["TFLOP"] == pytest.approx(2 * 3 * 26.3e9 * 2 * 32**2 / (1280 * 720) / 1e12, rel=0.3)
