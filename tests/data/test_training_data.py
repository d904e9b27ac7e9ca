"""Training data are never used for validation."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.data import textures
from jaxdeblur.data.clips import ClipSource
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.fixed_scenes import fixed_kinds, rendered_videos
from jaxdeblur.data.scenes import SCENES
from jaxdeblur.data.textures import RenderedScenes
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.data.videos import sharp_files
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.presets import PRESETS
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.training.progress import Validation
from jaxdeblur.video.image_file import read_image, write_png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two high-speed videos, and pairs of blurred and sharp frames."""
    rng = np.random.default_rng(0)
    for place in ("fast/TEST01", "fast/TEST03", "pairs/blur/walk", "pairs/sharp/walk"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(12):
            frame = rng.integers(0, 256, (24, 24, 3), np.uint8)
            write_png(tmp_path / place / f"{number:03d}.png", frame)
    return tmp_path


def test_a_video_that_trains_is_refused_for_validation(folder: Path) -> None:
    fast = f"highspeed:{folder / 'fast'}"
    config = DataConfig(data=("rendered", fast), validate_on=fast)
    with pytest.raises(UserError, match=r"used for training: TEST01, TEST03; .*--exclude"):
        list(TrainingData(config).validate)
    with pytest.raises(UserError, match="used for training: TEST03;"):
        list(TrainingData(dataclasses.replace(config, validate_only=("TEST03",))).validate)
    apart = dataclasses.replace(config, exclude=("TEST03",), validate_only=("TEST03",))
    (video,) = TrainingData(apart).validate
    assert video.name == "TEST03"
    ((_, _), (trained, _)) = TrainingData(apart).train
    assert [v.name for v in trained.videos] == ["TEST01"]  # type: ignore[union-attr]


def test_validation_follows_what_trains(folder: Path) -> None:
    """It takes scenes of the same kind; of GOPRO, which has no such split, some training videos."""
    assert TrainingData(DataConfig(scenes="wide")).scored("validation").spec == "rendered:wide"
    for kind in SCENES:  # Every kind that trains is scored on an existing kind of fixed scenes.
        scored = TrainingData(DataConfig(data=(f"rendered:{kind}",))).scored("validation").spec
        assert scored.removeprefix("rendered:") in fixed_kinds()
    assert TrainingData(DataConfig(scenes="clean")).scored("test").spec == "rendered:small"
    both = DataConfig(data=("rendered:small", "/data/GOPRO_Large"))
    assert TrainingData(both).scored("test") == ("rendered:small", "test", (), None)
    for part, videos in (("train", "abcdefghijk"), ("test", "z")):
        for video in videos:
            for half in ("blur", "sharp"):
                shutil.copytree(
                    folder / "pairs" / "sharp" / "walk", folder / "gopro" / part / video / half
                )
    gopro = DataConfig(data=(f"gopro:{folder / 'gopro'}",), exclude=("b",))
    assert TrainingData(gopro).held_out == ("a", "k")
    assert [video.name for video in TrainingData(gopro).validate] == ["a", "k"]
    ((trained, _),) = TrainingData(gopro).train
    assert [v.name for v in trained.videos] == list("cdefghij")  # type: ignore[union-attr]
    assert TrainingData(gopro).scored("test")[:2] == (gopro.data[0], "test")
    # Videos given by name are held out too; with another data set to validate on, none is.
    named = dataclasses.replace(gopro, validate_only=("c", "d"))
    assert TrainingData(named).held_out == ("c", "d")
    assert not TrainingData(dataclasses.replace(gopro, validate_on="rendered:tiny")).held_out
    # Too few videos to hold any out: rendered scenes are scored instead.
    few = DataConfig(data=(f"highspeed:{folder / 'fast'}",))
    assert not TrainingData(few).held_out
    assert (
        TrainingData(few).scored("test").spec
        == TrainingData(few).scored("validation").spec
        == "rendered:narrow"
    )


@pytest.mark.parametrize("names", [("typo",), ("a", "typo")])
def test_a_name_to_validate_on_must_be_one_of_a_video(folder: Path, names: tuple[str, ...]) -> None:
    for video, half in itertools.product("abcde", ("blur", "sharp")):
        shutil.copytree(folder / "pairs/sharp/walk", folder / "five" / half / video)
    config = DataConfig(data=(str(folder / "five"),), validate_only=names)
    with pytest.raises(UserError, match=r"--validate-only=typo: matches no video of .*five"):
        list(TrainingData(config).train)


@pytest.mark.parametrize(
    "wrong",
    [
        {"variant": "fog"},
        {"validate_only": ("a",)},
        {"validate_only": ("a",), "data": ("rendered", "/data/GOPRO_Large")},
    ],
)
def test_options_of_folders_are_not_ignored_with_rendered_scenes(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{min(wrong.keys() - {'data'}).replace('_', '-')}"):
        DataConfig(**wrong)
    DataConfig(**wrong, validate_on="/data/GOPRO_Large")


def test_a_split_that_numbers_its_videos_alike_is_its_own(folder: Path) -> None:
    """REDS counts the videos of each split from 000."""
    for part, count in (("train", 4), ("val", 1)):
        for number, half in itertools.product(range(count), ("sharp", "blur")):
            place = folder / "reds" / part / f"{part}_{half}" / f"{number:03d}"
            shutil.copytree(folder / "pairs/sharp/walk", place)
    reds = DataConfig(data=(f"reds:{folder / 'reds'}",))
    assert TrainingData(reds).scored("validation")[:3] == (reds.data[0], "validation", ())
    assert not TrainingData(reds).held_out
    (video,) = TrainingData(reds).validate
    assert "val_sharp" in str(min(sharp_files(video)))


def test_an_option_chooses_among_the_videos_of_all_folders(folder: Path) -> None:
    fast, slow, pairs = (f"highspeed:{folder / n}" for n in ("fast", "slow", "pairs/sharp"))
    shutil.copytree(folder / "fast/TEST01", folder / "slow/TEST01_still")
    shutil.copytree(folder / "fast/TEST03", folder / "slow/other")

    def trained(**options: Any) -> list[list[str]]:
        sources = TrainingData(DataConfig(**options)).train
        return [[video.name for video in dataset.videos] for dataset, _ in sources]  # type: ignore[union-attr]

    everything = (fast, slow, pairs)
    left = [["TEST01"], ["TEST01_still", "other"], ["walk"]]
    assert trained(data=everything, exclude=("TEST03",)) == left
    # A complete name in one folder does not count as a prefix in another.
    assert trained(data=(fast, slow), exclude=("TEST01",)) == [
        ["TEST03"],
        ["TEST01_still", "other"],
    ]
    assert trained(data=(fast, slow), only=("TEST03", "oth")) == [["TEST03"], ["other"]]
    with pytest.raises(
        UserError, match=r"--exclude=TEST09: matches no video of highspeed:.*fast, highspeed"
    ):
        trained(data=everything, exclude=("TEST03", "TEST09"))
    with pytest.raises(UserError, match=r"highspeed:.*slow: --only and --exclude leave no video"):
        trained(data=(fast, slow), only=("TEST03",))


def test_videos_shorter_than_the_usual_exposure_can_train(folder: Path) -> None:
    """Clips draw their own exposures; the exposure of an evaluation does not apply to them."""
    for number in (9, 10, 11):
        (folder / "fast" / "TEST01" / f"{number:03d}.png").unlink()
    fast = f"highspeed:{folder / 'fast'}"
    with pytest.raises(UserError, match="an exposure needs 11 frames: TEST01 has 9"):
        open_dataset(fast, "test")
    config = DataConfig(data=(fast,), taus=(3,), least_blur=0.0)
    sources = TrainingData(config).train
    options = config.clip_options(2, 16)
    assert {ClipSource(data, options).videos[0].name for data, _ in sources} == {"TEST01"}


def test_photographs_without_rendered_scenes_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="--photos has no effect"):
        DataConfig(data=(f"highspeed:{folder / 'fast'}",), photos=str(folder))


def test_photographs_of_one_s_own_reach_the_renderers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def find_photographs(split: str, photos: str | None) -> None:
        raise Asked(photos)

    monkeypatch.setattr(textures, "find_photographs", find_photographs)
    config = DataConfig(photos="/nowhere/pictures")
    with pytest.raises(Asked, match="/nowhere/pictures"):
        list(TrainingData(config).train)


def test_validation_on_sharp_video_counts_what_is_identical_as_100_db(folder: Path) -> None:
    for half in ("blur", "sharp"):
        shutil.copytree(folder / "pairs" / "sharp", folder / "same" / half)
    network = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True)
    rebuild, parameters = split(models.build(network))
    as_it_is = {n: jnp.zeros_like(a) if "head" in n else a for n, a in parameters.items()}
    validate = Validation(TrainingData(DataConfig(validate_on=f"pairs:{folder / 'same'}")), rebuild)
    scores = {"psnr": 100.0, "psnr_blurred": 100.0, "gain": 0.0, "least_gain": 0.0}
    assert validate(as_it_is) == scores


def test_a_network_of_photographs_is_validated_frame_by_frame(folder: Path) -> None:
    network = StrcnnConfig(m=1, width=4, blocks=2, head_width=0, residual=True)
    rebuild, parameters = split(models.build(network, seed=4))
    data = DataConfig(validate_on=f"pairs:{folder / 'pairs'}")
    (video,) = TrainingData(data).validate
    alone = [restore_pixels(rebuild(parameters), video.blurred(i)[None])[0] for i in range(8)]
    scores = Validation(TrainingData(dataclasses.replace(data, single=1.0)), rebuild)(parameters)
    expected = np.mean([psnr(frame, video.sharp(i)) for i, frame in enumerate(alone)])
    assert scores["psnr"] == pytest.approx(expected)
    assert Validation(TrainingData(data), rebuild)(parameters)["psnr"] != scores["psnr"]


def test_another_name_for_the_folder_hides_nothing(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "pairs")
    config = DataConfig(data=(str(folder / "pairs"),), validate_on=f"pairs:{folder / 'link'}")
    with pytest.raises(UserError, match="also used for training: walk;"):
        list(TrainingData(config).validate)


def test_rendered_scenes_that_validate_are_of_the_photographs_held_out_for_it() -> None:
    videos = TrainingData(DataConfig(validate_on="rendered:tiny")).validate
    expected = rendered_videos("validation", "tiny")
    assert len(videos) == len(expected) == 6
    np.testing.assert_array_equal(videos[0].sharp(0), expected[0].sharp(0))


@pytest.mark.parametrize(
    "data", [{"data": ("rendered:handheld", "rendered")}, {"scenes": "handheld"}]
)
def test_the_curriculum_ends_at_the_fastest_scenes_that_train(data: dict[str, Any]) -> None:
    limit = DataConfig(**data, curriculum=0.5, curriculum_start=4.0).motion_limit(100)
    assert [limit(step) for step in (0, 25, 50)] == [4.0, 22.0, float("inf")]


def test_every_preset_trains_on_any_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """``train.py --model=... --data=/data/GOPRO_Large``, as in the README."""
    for preset in PRESETS.values():
        paired = dataclasses.replace(preset.data, data=("/data/GOPRO_Large",))
        assert not paired.on_device
    assert not PRESETS["strcnn_dtb"].data.on_device  # a CPU has nothing to gain
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert PRESETS["strcnn_dtb"].data.on_device
    assert not dataclasses.replace(PRESETS["strcnn_dtb"].data, data=("/data/X",)).on_device


def test_a_variant_is_for_the_data_sets_that_have_several(folder: Path) -> None:
    for place in ("blur", "blur_gamma", "sharp"):
        shutil.copytree(folder / "pairs" / "sharp" / "walk", folder / "gopro" / "test1" / place)
    gopro, pairs = f"gopro:{folder / 'gopro'}", f"pairs:{folder / 'pairs'}"
    config = DataConfig(data=(gopro, pairs), mix=(3.0, 1.0), variant="blur_gamma")
    (first, three), (second, one) = TrainingData(config).train
    assert (three, one) == (3, 1)
    assert (first.variant, second.name) == ("blur_gamma", "pairs")  # type: ignore[union-attr]
    with pytest.raises(UserError, match="the layout pairs has no variants"):
        list(TrainingData(dataclasses.replace(config, data=(pairs,), mix=())).train)


def test_several_kinds_of_scenes_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path))
    monkeypatch.setattr(textures, "_LEAST_TEXTURES", 2)
    monkeypatch.setitem(SCENES, "small", dataclasses.replace(SCENES["tiny"], size=(48, 32)))
    config = DataConfig(data=("rendered:tiny", "rendered:small"), mix=(3.0, 1.0))
    (tiny, three), (small, one) = TrainingData(config, 40).train
    assert isinstance(tiny, RenderedScenes)
    assert isinstance(small, RenderedScenes)
    assert (tiny.config.size, small.config.size) == ((40, 48), (48, 40))
    assert (three, one) == (3, 1)
    with pytest.raises(UserError, match="footage: scenes to train on must be one of narrow"):
        list(TrainingData(DataConfig(data=("rendered:footage",))).train)


def test_every_option_of_a_clip_reaches_the_pipeline() -> None:
    config = DataConfig(
        taus=(3,),
        duty=(0.5, 0.8),
        linear=0.3,
        least_blur=1.5,
        keep_still=0.4,
        sharp_input=0.2,
        degraded=0.6,
        single=0.3,
        ends=0.5,
    )
    options = config.clip_options(5, 64, (2, 1))
    assert (options.frames, options.before, options.after, options.crop) == (5, 2, 1, 64)
    both = {f.name for f in dataclasses.fields(options)} & {
        f.name for f in dataclasses.fields(config)
    }
    for name in both:
        assert getattr(options, name) == getattr(config, name), name
        assert getattr(config, name) != getattr(DataConfig(), name), f"{name}: not told apart"


@pytest.mark.parametrize(("single", "around"), [(1.0, (0, 0)), (0.3, (2, 1))])
def test_a_photograph_is_drawn_without_frames_around_it(
    single: float, around: tuple[int, int]
) -> None:
    options = DataConfig(single=single).clip_options(1, 64, (2, 1))
    assert (options.before, options.after) == around


class Grey(VideoRestorer):
    """A network that gives every pixel the same grey, its one parameter."""

    multiple, lookahead = 1, 0

    def __init__(self, level: jax.Array) -> None:
        self.level = nnx.Param(level)

    def _restore_clip(self, clip: jax.Array) -> jax.Array:
        return jnp.zeros_like(clip) + self.level[...]


def test_validation_compares_with_the_sharp_frames(folder: Path) -> None:
    """On two videos, one of which is hardly blurred: there a grey picture scores worse."""
    shutil.copytree(folder / "pairs" / "sharp" / "walk", folder / "pairs" / "sharp" / "run")
    (folder / "pairs" / "blur" / "run").mkdir()
    for file in (folder / "pairs" / "sharp" / "run").iterdir():
        write_png(folder / "pairs" / "blur" / "run" / file.name, read_image(file) ^ 1)
    data = DataConfig(validate_on=f"pairs:{folder / 'pairs'}")
    validation = Validation(TrainingData(data), lambda parameters: Grey(parameters["level"]))
    scores = validation({"level": jnp.float32(0.5)})
    videos = TrainingData(data).validate
    grey = np.full((24, 24, 3), 128, np.uint8)
    before, after = (
        np.mean([[psnr(image(v, i), v.sharp(i)) for i in range(8)] for v in videos], axis=1)
        for image in (lambda v, i: v.blurred(i), lambda v, i: grey)
    )
    gains = after - before
    assert gains.min() < 0 < gains.max()
    assert scores == pytest.approx(
        {
            "psnr": after.mean(),
            "psnr_blurred": before.mean(),
            "gain": gains.mean(),
            "least_gain": gains.min(),
        }
    )
