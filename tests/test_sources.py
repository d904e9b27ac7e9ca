"""What trains never validates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxdeblur.data.scenes import SCENES, ScenePool
from jaxdeblur.data.sources import DataConfig, training_sources, validation_videos
from jaxdeblur.errors import UserError
from jaxdeblur.images import write_png


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
    with pytest.raises(UserError, match=r"TEST01, TEST03 would train too; .*--exclude"):
        validation_videos(config)
    with pytest.raises(UserError, match=": TEST03 would train too"):
        validation_videos(dataclasses.replace(config, validate_only=("TEST03",)))
    apart = dataclasses.replace(config, exclude=("TEST03",), validate_only=("TEST03",))
    (video,) = validation_videos(apart)
    assert video.name == "TEST03"
    ((_, _), (trained, _)) = training_sources(dataclasses.replace(apart, pool=1), 0)
    assert [v.name for v in trained.videos] == ["TEST01"]  # type: ignore[union-attr]


def test_another_name_for_the_folder_hides_nothing(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "pairs")
    config = DataConfig(data=(str(folder / "pairs"),), validate_on=f"pairs:{folder / 'link'}")
    with pytest.raises(UserError, match="walk would train too"):
        validation_videos(config)
    assert len(validation_videos(dataclasses.replace(config, validate_on="rendered:tiny"))) == 6


def test_several_kinds_of_scenes_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path))
    monkeypatch.setitem(SCENES, "small", dataclasses.replace(SCENES["tiny"], size=(48, 32)))
    config = DataConfig(data=("rendered:tiny", "rendered:small"), mix=(3.0, 1.0), pool=2)
    (tiny, three), (small, one) = training_sources(config, seed=0)
    assert isinstance(tiny, ScenePool)
    assert isinstance(small, ScenePool)
    assert tiny.sharp.shape == (2, 3, 32, 48, 3)
    assert small.sharp.shape == (2, 3, 48, 32, 3)
    assert (three, one) == (3, 1)
    with pytest.raises(UserError, match="rendered:no_such"):
        training_sources(DataConfig(data=("rendered:no_such",)), seed=0)
