"""Files are replaced when they are whole, and are what they were before in all else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jaxdeblur.data.scenes import cache_folder
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole


def test_what_a_link_leads_to_is_replaced_and_keeps_its_permissions(tmp_path: Path) -> None:
    target, link = tmp_path / "target.mp4", tmp_path / "link.mp4"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to("target.mp4")
    with replace_when_whole(link) as part:
        assert part.suffix == ".mp4"
        part.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("動" * 83 + ".mp4")  # 253 bytes; 255 are allowed
    with replace_when_whole(target) as part:
        part.write_text("new")
    assert target.read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match="no regular file"), replace_when_whole(place):
            pass
    assert (tmp_path / "pipe").is_fifo()


def test_without_a_home_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAXDEBLUR_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(UserError, match="JAXDEBLUR_CACHE"):
        cache_folder()
