"""Evaluation: scores of a known restorer, written files, resuming, sharing and refusals."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxdeblur import models
from jaxdeblur.console import run_command
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.videos import Dataset
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation import evaluate as evaluate_module
from jaxdeblur.evaluation import metrics
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.evaluate import (
    PREVIEW_FRAMES,
    _explain,
    _TimedRestoration,
    evaluate,
)
from jaxdeblur.evaluation.results import default_folder, table
from jaxdeblur.files import safe_name
from jaxdeblur.models import parameters
from jaxdeblur.models.explanation import AttentionMaps, Explanation
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.testing import float32_error
from jaxdeblur.training.run_folder import Run
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.weights.checkpoints import Checkpoints
from jaxdeblur.weights.load import About, LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

ROOT = Path(__file__).parents[2]
GAIN = 1.2347  # no grey level times this ends in exactly .5
CONFIG = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True)


class Brighten(VideoRestorer):
    """Multiplies frames by a parameter, one frame late, so that the output is known exactly."""

    multiple = 1
    lookahead = 1

    def __init__(self, factor: float = GAIN) -> None:
        self.config = CONFIG
        self.factor = nnx.Param(jnp.float32(factor))

    def _restore_clip(self, clip):
        return clip * self.factor[...]

    def _initial_state(self, batch, height, width):
        return jnp.zeros((batch, height, width, 3))

    def _step(self, state, frame, repeated):
        return frame, state * self.factor[...]

    def explain_clip(self, clip):
        return Explanation(blending_weights=clip[..., ::2, ::2, 0] * self.factor[...] / GAIN)


class MemoryVideo:
    """A video in memory that counts how often it is read."""

    def __init__(self, name: str, frames: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shape = (frames, 24, 32, 3)
        self.name = name
        self.sharp_frames = rng.integers(30, 200, shape, dtype=np.uint8)
        noise = rng.normal(0, 4, shape)
        self.blurred_frames = np.clip(self.sharp_frames / GAIN + noise, 0, 255).astype(np.uint8)
        self.reads = 0

    height = property(lambda self: self.sharp_frames.shape[1])
    width = property(lambda self: self.sharp_frames.shape[2])

    def __len__(self) -> int:
        return len(self.sharp_frames)

    def blurred(self, index: int) -> np.ndarray:
        self.reads += 1
        return self.blurred_frames[index]

    def sharp(self, index: int) -> np.ndarray:
        return self.sharp_frames[index]


def a_dataset() -> Dataset:
    videos = [MemoryVideo("walk", 5, 1), MemoryVideo("../up/and away", 7, 2)]
    return Dataset("memory", "blur", videos)


def loaded(model: VideoRestorer | None = None) -> tuple[VideoRestorer, About]:
    return model or Brighten(), About("brighten", CONFIG, 7, "runs/x at step 7")


def expected_frames(video: MemoryVideo) -> np.ndarray:
    bright = video.blurred_frames.astype(np.float32) / 255 * np.float32(GAIN)
    return np.rint(np.clip(bright, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Dataset, dict]:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    dataset = a_dataset()
    config = EvaluationConfig(frames=True, explain=True)
    return out, dataset, evaluate(*loaded(), dataset, config, out)


class TestScores:
    def test_the_numbers(self, finished):
        _, dataset, found = finished
        for video, entry in zip(dataset.videos, found["videos"], strict=True):
            restored, sharp = expected_frames(video), video.sharp_frames
            assert entry["name"] == video.name
            assert entry["frames"] == len(video)
            for key, frames in (("", restored), ("_blurred", video.blurred_frames)):
                pairs = list(zip(frames, sharp, strict=True))
                assert entry[f"psnr{key}"] == pytest.approx(
                    np.mean([metrics.psnr(*pair) for pair in pairs])
                )
                assert entry[f"ssim{key}"] == pytest.approx(
                    np.mean([metrics.ssim(*pair) for pair in pairs])
                )
                flicker = metrics.Flicker()
                for pair in pairs:
                    flicker.add(*pair)
                assert entry[f"temporal_error{key}"] == pytest.approx(flicker.rms())
        first, second = (video["psnr"] for video in found["videos"])
        assert found["psnr"] == found["video_mean"]["psnr"] == pytest.approx((first + second) / 2)
        assert found["pooled"]["psnr"] == pytest.approx((5 * first + 7 * second) / 12)
        assert found["gain"] == pytest.approx(found["psnr"] - found["psnr_blurred"])
        assert found["gain"] > 5
        first, second = (video["seconds_per_frame"] for video in found["videos"])
        assert found["seconds_per_frame"] == pytest.approx((5 * first + 7 * second) / 12)

    def test_metrics_json(self, finished):
        out, _, found = finished
        written = json.loads((out / "metrics.json").read_text())
        assert written == json.loads(json.dumps(found))
        assert written["protocol"]["name"] == "jaxdeblur"
        assert written["dataset"] == {"name": "memory", "variant": "blur", "data": "rendered"}
        assert written["checkpoint"]["source"] == "runs/x at step 7"
        assert written["checkpoint"]["preset"] == "brighten"
        assert written["versions"].keys() >= {"jaxdeblur", "jax", "flax", "numpy", "python"}
        assert written["device"]
        assert written["seconds_per_frame"] > 0
        assert written["frames"] == written["scored_frames"] == 12

    def test_frames_are_what_was_scored(self, finished):
        out, dataset, _ = finished
        folders = sorted((out / "frames").iterdir())
        assert [folder.name for folder in folders] == ["000-walk", "001-up-and-away"]
        for folder, video in zip(folders, dataset.videos, strict=True):
            files = sorted(folder.iterdir())
            written = np.stack([np.asarray(Image.open(file)) for file in files])
            np.testing.assert_array_equal(written, expected_frames(video))

    def test_the_report_holds_frames_and_weights(self, finished):
        out, _, _ = finished
        text = (out / "report.html").read_text()
        data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
        assert data["title"] == "brighten on memory (blur)"
        assert [len(video["shots"]) for video in data["videos"]] == [5, 7]
        assert data["videos"][1]["shots"][6]["weights"]["width"] == 16
        assert data["videos"][0]["frame_psnr"] == pytest.approx(
            [
                metrics.psnr(*pair)
                for pair in zip(
                    expected_frames(finished[1].videos[0]),
                    finished[1].videos[0].sharp_frames,
                    strict=True,
                )
            ]
        )

    def test_each_frame_shows_its_own_weights(self, finished):
        """Brighten's weights are the input frame at half size."""
        out, dataset, _ = finished
        text = (out / "report.html").read_text()
        data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
        for video, shown in zip(dataset.videos, data["videos"], strict=True):
            for shot in shown["shots"]:
                file = base64.b64decode(shot["weights"]["src"].partition(",")[2])
                weights = np.asarray(Image.open(io.BytesIO(file))).astype(int)
                expected = video.blurred_frames[shot["index"], ::2, ::2, 0]
                assert np.abs(weights - expected).max() <= 1

    def test_the_table(self, finished):
        found = finished[2]
        _, walk, _, _, first, last = table(found).splitlines()
        for line, name, row, frames in (
            (walk, "walk", found["videos"][0], 5),
            (first, "mean over videos", found["video_mean"], 12),
            (last, "mean over frames", found["pooled"], 12),
        ):
            expected = [frames, row["psnr_blurred"], row["psnr"]]
            expected += [row["psnr"] - row["psnr_blurred"], row["ssim_blurred"], row["ssim"]]
            assert line.startswith(name)
            shown = [float(number) for number in line.removeprefix(name).split()]
            assert shown[:6] == pytest.approx(expected, abs=0.0051)
        assert shown[4:] == pytest.approx(expected[4:], abs=0.000051)

    def test_nothing_else_is_left(self, finished):
        out, _, _ = finished
        names = {path.name for path in out.iterdir()}
        assert names == {"evaluation.json", "frames", "metrics.json", "report.html", "videos"}
        assert len(list((out / "videos").iterdir())) == 2


@pytest.mark.parametrize("preview", [False, True])
def test_a_preview_shows_the_first_video_before_and_after(preview, tmp_path):
    wide = MemoryVideo("wide", 30, 1)
    wide.sharp_frames = np.full((30, 60, 400, 3), 120, np.uint8)
    levels = 90 + np.arange(30) % 2 * 20  # equal frames would be merged
    wide.blurred_frames = np.broadcast_to(levels[:, None, None, None], (30, 60, 400, 3))
    wide.blurred_frames = wide.blurred_frames.astype(np.uint8)
    dataset = Dataset("memory", "", [wide, MemoryVideo("other", 3, 2)])
    evaluate(*loaded(), dataset, EvaluationConfig(preview=preview), tmp_path / "out")
    path = tmp_path / "out" / "preview.webp"
    assert path.exists() == preview
    if preview:
        with Image.open(path) as animation:
            assert (animation.size, animation.n_frames) == ((640, 48), PREVIEW_FRAMES)
            bottom = np.asarray(animation.convert("RGB"))[-8:].astype(int)
        assert np.abs(bottom[:, :300] - 90).max() < 6
        assert np.abs(bottom[:, 340:] - round(90 * GAIN)).max() < 6


class TestProtocols:
    def test_skipped_frames_and_cut_borders(self, tmp_path):
        dataset = a_dataset()
        found = evaluate(*loaded(), dataset, EvaluationConfig(protocol="cdvd-tsp"), tmp_path / "o")
        assert found["scored_frames"] == 1 + 3
        scores = [
            metrics.psnr(expected_frames(v)[i, 4:-4, 4:-4], v.sharp_frames[i, 4:-4, 4:-4])
            for v in dataset.videos
            for i in range(2, len(v) - 2)
        ]
        assert found["psnr"] == found["pooled"]["psnr"] == pytest.approx(np.mean(scores))
        kept = json.loads((tmp_path / "o" / "videos" / "000-walk.json").read_text())
        assert kept["scores"]["scored_from"] == 2  # the report page aligns scores by it

    @pytest.mark.parametrize("name", ["estrnn", "shift-net"])
    def test_fractions(self, name, tmp_path):
        dataset = a_dataset()
        found = evaluate(*loaded(), dataset, EvaluationConfig(protocol=name), tmp_path / "o")
        scores = []
        for video in dataset.videos:
            bright = video.blurred_frames.astype(np.float64) * GAIN
            images = np.clip(bright, 0, 255)
            images = np.floor(images) if name == "estrnn" else images
            pairs = list(zip(images, video.sharp_frames, strict=True))[2:-2]
            scores += [metrics.psnr(*pair) for pair in pairs]
        assert found["psnr"] == pytest.approx(np.mean(scores), abs=0.02)

    def test_frames_are_written_as_rounded_whatever_is_scored(self, tmp_path):
        (video,) = dataset = [MemoryVideo("walk", 5, 1)]
        config = EvaluationConfig(protocol="estrnn", frames=True)
        evaluate(*loaded(), Dataset("memory", "", dataset), config, tmp_path / "o")
        files = sorted((tmp_path / "o" / "frames" / "000-walk").iterdir())
        written = np.stack([np.asarray(Image.open(file)) for file in files])
        np.testing.assert_array_equal(written, expected_frames(video))

    def test_a_video_without_a_scored_frame(self, tmp_path):
        config = EvaluationConfig(protocol="cdvd-tsp", max_frames=4)
        with pytest.raises(
            UserError, match=r"walk, .*: too short; protocol cdvd-tsp scores no frame"
        ):
            evaluate(*loaded(), a_dataset(), config, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestGoingOn:
    def test_what_is_done_is_skipped(self, tmp_path):
        out = tmp_path / "out"
        config = EvaluationConfig(max_frames=3)
        dataset = a_dataset()
        found = evaluate(*loaded(), dataset, config, out)
        assert [video.reads for video in dataset.videos] == [3, 3]
        # The second video is damaged, as if the first run had been killed during it.
        second = out / "videos" / "001-up-and-away.json"
        second.write_text(second.read_text()[:-100])
        (out / "metrics.json").unlink()
        again = evaluate(*loaded(), dataset, config, out)
        assert [video.reads for video in dataset.videos] == [3, 6]
        timeless = ("psnr", "ssim", "psnr_blurred", "ssim_blurred", "pooled", "frames")
        assert {key: again[key] for key in timeless} == {key: found[key] for key in timeless}
        assert (out / "metrics.json").exists()

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda c: (c, loaded(Brighten(1.5))), "with different weights"),
            (
                lambda c: (dataclasses.replace(c, protocol="nafnet"), loaded()),
                "with different protocol",
            ),
            (
                lambda c: (dataclasses.replace(c, max_frames=3), loaded()),
                "with different max_frames",
            ),
        ],
    )
    def test_another_evaluation_is_refused_or_replaces_it(self, change, named, tmp_path):
        out, config = tmp_path / "out", EvaluationConfig(max_frames=2)
        evaluate(*loaded(), a_dataset(), config, out)
        before = (out / "metrics.json").read_bytes()
        config, model = change(config)
        with pytest.raises(UserError, match=f"an evaluation {named}; .*--overwrite"):
            evaluate(*model, a_dataset(), config, out)
        assert (out / "metrics.json").read_bytes() == before
        for folder in ("videos", "frames"):  # left by a data set with more videos
            (out / folder).mkdir(exist_ok=True)
            (out / folder / "009-old").touch()
        evaluate(*model, a_dataset(), config, out, overwrite=True)
        assert (out / "metrics.json").read_bytes() != before
        assert not list(out.glob("*/009-old"))

    def test_a_folder_of_something_else_is_never_replaced(self, tmp_path):
        (tmp_path / "holiday.jpg").write_bytes(b"x")
        for overwrite in (False, True):
            with pytest.raises(UserError, match="contains something other than an evaluation"):
                evaluate(*loaded(), a_dataset(), EvaluationConfig(), tmp_path, overwrite=overwrite)
        with pytest.raises(NotADirectoryError, match=r"holiday\.jpg"):  # one line in a command
            evaluate(*loaded(), a_dataset(), EvaluationConfig(), tmp_path / "holiday.jpg")
        assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


class TestRefusals:
    def test_options(self):
        for options, message in (
            ({"protocol": "matlab"}, "--protocol=matlab: must be one of jaxdeblur"),
            ({"max_frames": 0}, "--max-frames must be 1 or more"),
        ):
            with pytest.raises(UserError, match=message):
                EvaluationConfig(**options)

    def test_a_model_with_nothing_to_explain(self, tmp_path):
        class Plain(Brighten):
            explain_clip = None

        class Empty(Brighten):
            def explain_clip(self, clip):
                return Explanation()

        for model in (Plain(), Empty()):
            with pytest.raises(
                UserError, match="--explain: brighten has no paths, blending or attention"
            ):
                evaluate(
                    *loaded(model), a_dataset(), EvaluationConfig(explain=True), tmp_path / "o"
                )

    @pytest.mark.stress  # traces the whole restorer
    def test_paths_are_something_to_explain(self):
        assert evaluate_module._explains(load_model("paths").model)

    def test_the_last_frames_explained_see_what_they_look_ahead_to(self, tmp_path, monkeypatch):
        seen = []

        def explain(model, frames):
            seen.append(len(frames))
            return Explanation(jnp.ones((1, len(frames), 8, 12)))

        class Ahead(Brighten):
            def explain_clip(self, clip):
                return Explanation(blending_weights=clip[..., 0])

        monkeypatch.setattr(evaluate_module, "EXPLAINED_FRAMES", 3)
        monkeypatch.setattr(evaluate_module, "_explain", explain)
        evaluate(*loaded(Ahead()), a_dataset(), EvaluationConfig(explain=True), tmp_path / "o")
        assert set(seen) == {4}

    def test_maps_are_those_of_the_frame_without_its_padding(self):
        class Padded(Brighten):
            multiple = 8

            def explain_clip(self, clip):
                maps = self.pad(clip)[..., ::2, ::2, 0]
                return Explanation(
                    blending_weights=maps,
                    attention=(
                        AttentionMaps(
                            "all", maps[:, :, None], maps[:, :, :1], maps[..., None], (0,)
                        ),
                    ),
                )

        frames = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), np.uint8)  # to 16 x 24
        found = _explain(Padded(), list(frames))
        expected = frames[None, :, ::2, ::2, 0] / np.float32(255)
        np.testing.assert_allclose(found.blending_weights, expected, rtol=0, atol=float32_error(1))
        np.testing.assert_allclose(
            found.attention[0].spatial_maps[:, :, 0], expected, rtol=0, atol=float32_error(1)
        )
        np.testing.assert_allclose(
            found.attention[0].pixel_mix[..., 0], expected, rtol=0, atol=float32_error(1)
        )

    def test_a_video_that_is_too_small_is_named_before_any_is_restored(self, tmp_path):
        small = MemoryVideo("thumbnail", 3, 3)
        small.sharp_frames = small.sharp_frames[:, :8]
        dataset = Dataset("memory", "", [*a_dataset().videos, small])
        with pytest.raises(UserError, match=r"thumbnail: .* too small for protocol jaxdeblur"):
            evaluate(*loaded(), dataset, EvaluationConfig(), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_the_time_of_one_frame_is_without_compiling(self, tmp_path):
        dataset = Dataset("memory", "", [MemoryVideo("still", 1, 3)])
        metrics = evaluate(*loaded(), dataset, EvaluationConfig(), tmp_path / "out")
        assert metrics["videos"][0]["seconds_per_frame"] is None
        assert "-" in table(metrics).splitlines()[1]
        timed = _TimedRestoration(Brighten(), dataset.videos[0], 1, wide=False)
        timed.durations = [9.0, 1.0, 2.0, 4.0]  # of several, the first one includes compilation
        assert timed.seconds_per_frame() == 2

    def test_frames_that_are_restored_by_themselves_know_nothing_of_each_other(self, tmp_path):
        model = models.build(dataclasses.replace(CONFIG, blocks=2), seed=4)
        dataset = Dataset("memory", "", [MemoryVideo("walk", 3, 1)])
        config = EvaluationConfig(single=True, frames=True)
        evaluate(*loaded(model), dataset, config, tmp_path / "single")
        written = sorted((tmp_path / "single" / "frames").glob("*/*.png"))
        assert len(written) == 3
        clip = dataset.videos[0].blurred_frames
        together = restore_pixels(model, clip)
        for index, path in enumerate(written):
            frame = np.asarray(Image.open(path)).astype(int)
            assert np.abs(frame - restore_pixels(model, clip[index : index + 1])[0]).max() <= 1
            assert np.abs(frame - together[index]).max() > 1
        with pytest.raises(UserError, match="--explain shows what passes between frames"):
            EvaluationConfig(single=True, explain=True)

    def test_the_time_of_a_frame_is_without_reading_it(self, monkeypatch):
        now = 0.0

        class Slow(MemoryVideo):
            def blurred(self, index):
                nonlocal now
                now += 1.0
                return super().blurred(index)

        clock = types.SimpleNamespace(perf_counter=lambda: now)
        monkeypatch.setattr(evaluate_module, "time", clock)
        timed = _TimedRestoration(Brighten(), Slow("slow", 3, 3), 3, wide=False)
        assert len(list(timed)) == now == 3
        assert timed.seconds_per_frame() == 0


def test_the_frames_of_the_report_are_thinned_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_module, "SHOWN_PIXELS", 2 * 3 * 24 * 32)
    evaluate(*loaded(), a_dataset(), EvaluationConfig(), tmp_path / "out")
    files = sorted((tmp_path / "out" / "videos").iterdir())
    shots = [json.loads(file.read_text())["shots"] for file in files]
    assert [[shot["index"] for shot in of_one] for of_one in shots] == [[0, 2, 4], [0, 3, 6]]


class TestFolders:
    def test_default(self, tmp_path):
        dataset, config = a_dataset(), EvaluationConfig()
        run = tmp_path / "run"
        run.mkdir()
        assert default_folder(str(run), dataset, config) == (run / "evaluation-memory-blur")
        config = EvaluationConfig(protocol="nafnet")
        assert default_folder("a/b.safetensors", dataset, config) == (
            Path("evaluations/b-memory-blur-nafnet")
        )

    def test_names_stay_in_their_folder(self):
        for name in ("../../etc", "/etc/passwd", "..", "-rf", "a\0b", "x" * 300, ""):
            safe = safe_name(name)
            assert safe
            assert "/" not in safe
            assert len(safe) <= 80
            assert not safe.startswith((".", "-"))


def write_pairs(folder: Path, names: tuple[str, ...] = ("one", "two", "three")) -> None:
    for number, name in enumerate(names):
        video = MemoryVideo(name, 3, number)
        for kind, frames in (("blur", video.blurred_frames), ("sharp", video.sharp_frames)):
            (folder / kind / name).mkdir(parents=True)
            for i, frame in enumerate(frames):
                Image.fromarray(frame).save(folder / kind / name / f"{i:03d}.png")


@pytest.fixture(scope="module")
def weights_and_data(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("command")
    model = LoadedModel(models.build(CONFIG), "tiny", CONFIG, 3, "tiny", {})
    export_weights(model, folder / "tiny.safetensors")
    write_pairs(folder / "data")
    return folder / "tiny.safetensors", folder / "data"


def command(*arguments: str, monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location("evaluate_command", ROOT / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    run_command(module.main, "evaluate.py")


class TestCommand:
    def test_evaluates_and_says_where(self, weights_and_data, tmp_path, monkeypatch, capsys):
        weights, data = weights_and_data
        out = tmp_path / "out"
        arguments = (f"--ckpt={weights}", f"--data=pairs:{data}", f"--out={out}", "--explain")
        command(*arguments, "--only", "one", "two", monkeypatch=monkeypatch)
        shown = capsys.readouterr().out
        assert str(out / "report.html") in shown
        assert [line.split()[0] for line in shown.splitlines()[1:3]] == ["one", "two"]
        found = json.loads((out / "metrics.json").read_text())
        assert {video["name"] for video in found["videos"]} == {"one", "two"}
        assert "wₙ" in (out / "report.html").read_text(encoding="utf-8")

    def test_ckpt_without_a_value_is_the_newest_run_that_has_a_checkpoint(
        self, weights_and_data, tmp_path, monkeypatch, capsys
    ):
        _, data = weights_and_data
        monkeypatch.chdir(tmp_path)
        given = (f"--data=pairs:{data}", "--only", "one", "--max-frames=3")
        with pytest.raises(SystemExit):
            command("--ckpt", *given, monkeypatch=monkeypatch)
        assert "no run in runs/ has a checkpoint" in capsys.readouterr().err
        for second, (name, step) in enumerate([("old", 9), ("new", 3), ("begun", None)]):
            folder = Path("runs", name)
            folder.mkdir(parents=True)
            Run("tiny", CONFIG, TrainingConfig(), DataConfig()).write(folder)
            if step is not None:
                checkpoints = Checkpoints(folder)
                checkpoints.save_items(step, {"weights": parameters.split(models.build(CONFIG))[1]})
                checkpoints.close()
                os.utime(folder / "checkpoints" / str(step), (second, second))
        command("--ckpt", *given, monkeypatch=monkeypatch)
        said = capsys.readouterr()
        assert "scoring the newest run, runs/new; --ckpt=RUN selects another\n" in said.err
        (metrics,) = Path("runs").glob("*/*/metrics.json")
        assert metrics.parents[1] == Path("runs/new")
        assert json.loads(metrics.read_text())["checkpoint"]["step"] == 3
        with pytest.raises(SystemExit):  # as from --ckpt="$UNSET"
            command("--ckpt=", *given, monkeypatch=monkeypatch)

    def test_split_and_exposure_are_those_that_were_asked_for(
        self, weights_and_data, tmp_path, monkeypatch
    ):
        """Otherwise scores of other frames, or of less blur, would appear under the same name."""
        weights, _ = weights_and_data
        for split, frames in (("train", 12), ("test", 8)):
            (tmp_path / "fast" / split / "walk").mkdir(parents=True)
            for i, frame in enumerate(MemoryVideo("walk", frames, 0).sharp_frames):
                Image.fromarray(frame).save(tmp_path / "fast" / split / "walk" / f"{i:03d}.png")
        out = tmp_path / "out"
        arguments = (f"--ckpt={weights}", f"--data=highspeed:{tmp_path / 'fast'}", f"--out={out}")
        options = ("--split=train", "--tau=3", "--period=4")
        command(*arguments, *options, monkeypatch=monkeypatch)
        found = json.loads((out / "metrics.json").read_text())
        assert found["dataset"]["name"] == "fast/train"
        assert found["dataset"]["variant"] == "tau 3, period 4"
        assert found["frames"] == 3

    def test_scores_of_frames_that_have_changed_are_not_given_again(
        self, weights_and_data, tmp_path, monkeypatch, capsys
    ):
        weights, data = weights_and_data
        there = tmp_path / "data"
        shutil.copytree(data, there)
        given = (f"--ckpt={weights}", f"--data=pairs:{there}", f"--out={tmp_path / 'out'}")
        for _ in range(2):
            command(*given, monkeypatch=monkeypatch)
        assert "3 videos were already done" in capsys.readouterr().err
        shutil.copy(there / "sharp" / "one" / "000.png", there / "blur" / "one")
        with pytest.raises(SystemExit):
            command(*given, monkeypatch=monkeypatch)
        assert "an evaluation with different files" in capsys.readouterr().err
        shutil.copy(data / "blur" / "one" / "000.png", there / "blur" / "one")
        with pytest.raises(SystemExit):
            command(*given, "--explain", "--max-frames=3", monkeypatch=monkeypatch)
        said = capsys.readouterr().err
        assert "max_frames, explain; choose another folder with --out" in said
        command(*given, "--overwrite", monkeypatch=monkeypatch)

    def test_bad_input_is_one_line_and_exit_code_2(
        self, weights_and_data, tmp_path, monkeypatch, capsys
    ):
        weights, data = weights_and_data
        out = f"--out={tmp_path / 'out'}"
        for arguments in (
            ["--ckpt=no/such/run", out],
            [f"--ckpt={weights}", "--protocol=matlab", out],
            [f"--ckpt={weights}", f"--data={tmp_path / 'nothing'}", out],
            [f"--ckpt={weights}", f"--data=pairs:{data}", "--only", "four", out],
            [f"--ckpt={weights}", "--frame", out],
            [out],
        ):
            with pytest.raises(SystemExit) as leaving:
                command(*arguments, monkeypatch=monkeypatch)
            assert leaving.value.code == 2, arguments
            complaint = capsys.readouterr().err
            assert complaint.startswith("evaluate.py: error: ")
            assert complaint.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.stress
def test_two_processes_share_the_videos(weights_and_data, tmp_path):
    weights, data = weights_and_data
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--ckpt={weights}", f"--data=pairs:{data}", "--num-processes=2"]
    options += [f"--coordinator=127.0.0.1:{port}", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "evaluate.py"), *options, f"--process-id={i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    # Each restores its own videos: process 0 the first and third, process 1 the second.
    names = ("one", "three", "two")
    share = [[name for name in names if f" {name}: " in err] for _, err in said]
    assert sorted(map(len, share)) == [1, 2]
    assert sorted(share[0] + share[1]) == sorted(names)
    assert "mean over videos" in said[0][0]
    assert "mean over videos" not in said[1][0]
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(found["videos"]) == 3
