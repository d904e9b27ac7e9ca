"""What the page does, without a browser: files, times, cancelling, and what is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdeblur import models
from jaxdeblur.app import show, work
from jaxdeblur.app.show import FileProgress, Found, Settings
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.restoration.deblurrer import Deblurrer

NETWORK = StrcnnConfig(m=0, width=4, blocks=1, head_width=0, recurrent=False, blending="none")


class SmallEngine(work.Engine):
    """An engine whose network compiles at once."""

    def __init__(self) -> None:
        super().__init__("small")
        self._deblurrers["small"] = Deblurrer(models.build(NETWORK))


@pytest.fixture
def session(tmp_path: Path) -> work.Session:
    return work.Session(SmallEngine(), tmp_path / "session")


def photographs(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((16, 24, 3), 60 * number, np.uint8)).save(folder / name)
    return [folder / name for name in names]


def test_files_come_in_turn_and_go_with_the_session(session: work.Session, tmp_path: Path) -> None:
    paths = photographs(tmp_path / "uploads", "a.png", "b.jpg")
    (tmp_path / "uploads" / "c.png").write_bytes(b"no image")
    session.take([*paths, tmp_path / "uploads" / "c.png"], set())
    assert [(each.name, each.width) for each in session.found] == [("a.png", 24), ("b.jpg", 24)]
    assert len(session.wrong) == 1
    assert session.wrong[0].startswith("c.png: ")
    states = list(session.restore(Settings()))
    assert [(state.name, state.result) for state in states if state.seconds is not None][-1] == (
        "b.jpg",
        1,
    )
    assert [result.path.name for result in session.results] == ["a-sharp.png", "b-sharp.jpg"]
    before, after = session.results[0].pair(0, session.folder)
    assert Path(before).exists()
    assert Path(after).exists()
    session.take(paths[:1], used_elsewhere={paths[1]})
    assert paths[0].exists(), "it was dropped again"
    assert paths[1].exists(), "another tab uses it"
    assert not (tmp_path / "uploads" / "c.png").exists()
    assert list(session.folder.iterdir()) == []
    session.forget(set())
    assert not session.folder.exists()
    assert not paths[0].exists()


def test_cancelling_ends_all_files(session: work.Session, tmp_path: Path) -> None:
    session.take(photographs(tmp_path / "uploads", "a.png", "b.png"), set())
    with session._engine.busy:  # as another tab's restoration would be
        states = session.restore(Settings())
        first = next(states)
        session.cancel()
    rest = list(states)
    assert first.done == 0
    assert [state.error for state in rest][-1] == "cancelled"
    assert {state.name for state in rest} == {"a.png"}
    assert session.results == []
    assert list(session.folder.iterdir()) == []


def test_the_expected_time_becomes_this_machines_own(session: work.Session, tmp_path: Path) -> None:
    session.take(photographs(tmp_path / "uploads", "a.png"), set())
    found = session.found[0]
    assert session.seconds(Settings()) == (pytest.approx(16 * 24 / 1e6 * 2.5), False)
    session._engine.learn(found, False, 5.0)
    assert session.seconds(Settings()) == (pytest.approx(5.0), True)


def test_a_part_counts_as_many_frames_as_it_has() -> None:
    video = Found(Path("a.mp4"), True, 720, 1280, 300, 30.0)
    assert video.frames_in(0.0, None) == 300
    assert video.frames_in(4.0, None) == 180
    assert video.frames_in(8.0, 10.0) == 60
    endless = Found(Path("a.mp4"), True, 720, 1280, None, 30.0)
    assert endless.frames_in(0.0, None) is None
    assert endless.frames_in(0.0, 10.0) == 300


def test_what_is_shown_is_text_not_markup() -> None:
    name = "<b>x</b>.mp4"
    found = Found(
        Path(name), True, 2, 2, 1, 25.0, {"duty": 0.5, "light": "linear", "steady": False}
    )
    for html in (
        show.files([found], [f"{name}: wrong"]),
        show.progress(FileProgress(name, 0, 1, notes=[name])),
        show.progress(FileProgress(name, 0, 1, error=name)),
    ):
        assert "<b>x" not in html
        assert "&lt;b&gt;x" in html
    assert "shutter open 50% of the time, in linear light, not steady" in show.files([found], [])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (70.0, "70 s"), (200.0, "3 min"), (4800.0, "80 min"), (9000.0, "2:30 h")],
)
def test_times_are_said_as_exactly_as_they_are_known(seconds: float, said: str) -> None:
    assert show.duration(seconds) == said
