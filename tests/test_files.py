"""Files are replaced only when complete, and keep their links and permissions."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxdeblur import files
from jaxdeblur.errors import UserError
from jaxdeblur.files import local, made_once, replace_folder_when_whole, replace_when_whole


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


def test_a_new_file_gets_the_usual_permissions_without_a_change_to_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask is of the whole process, so that other threads would see a change."""
    (tmp_path / "usual").touch()
    monkeypatch.setattr(os, "umask", None)
    with replace_when_whole(tmp_path / "new"):
        pass
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("動" * 83 + ".mp4")  # 253 bytes; 255 are allowed
    with replace_when_whole(target) as part:
        part.write_text("new")
    assert target.read_text() == "new"


def test_whoever_interrupts_the_making_of_a_file_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdeblur.files.fcntl.flock", interrupt)
    with pytest.raises(KeyboardInterrupt), replace_when_whole(tmp_path / "a.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match="not a regular file"), replace_when_whole(place):
            pass
    assert (tmp_path / "pipe").is_fifo()


def test_what_several_want_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, found = tmp_path / "pool", []

    def make() -> None:
        with made_once(target):
            found.append(target.exists())

    other = threading.Thread(target=make)
    with made_once(target):
        other.start()
        said, deadline = "", time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        target.mkdir()
    other.join()
    assert said == f"waiting for another process to create {target}\n"
    assert found == [True]
    assert list(tmp_path.iterdir()) == [target]  # no lock is left


def test_where_nothing_can_be_locked_all_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with made_once(tmp_path / "pool"), made_once(tmp_path / "pool"):
        pass
    with made_once(tmp_path / "nowhere" / "pool"):  # whoever creates it reports the error
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_even_where_exceptions_are_lost(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As in JAX's callbacks during garbage collection, while threads go on writing."""
    program = f"""
import itertools, os, signal, threading, time
from jaxdeblur.console import run_command
from jaxdeblur.files import replace_folder_when_whole, replace_when_whole

class Collected:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})  # what is raised here is printed and forgotten

def write(folder):
    for index in itertools.count():
        with replace_when_whole(folder / str(index % 50)) as part:
            part.write_text("frame")

signal.signal({int(number)}, signal.SIG_DFL)  # nohup would have it ignored
def main():
    with replace_folder_when_whole("frames") as part, replace_when_whole("out.mkv"):
        threading.Thread(target=write, args=[part], daemon=True).start()
        time.sleep(0.1)
        Collected()
        time.sleep(60)

run_command(main, "command")
"""
    (tmp_path / "out.mkv").write_text("old")
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
        timeout=50,
    )
    assert ended.returncode == 130
    assert ended.stderr.splitlines()[0] == "command: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]
    assert (tmp_path / "out.mkv").read_text() == "old"


def killed_while_it_writes(folder: Path) -> None:
    """Starts a process that writes a file and a folder there, and kills it in the middle."""
    program = """
import sys, time
from jaxdeblur.files import replace_folder_when_whole, replace_when_whole
with replace_when_whole("out.mp4"), replace_folder_when_whole("frames") as part:
    (part / "1.png").write_bytes(b"1")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(list(folder.iterdir())) == 2
        files._looked_through.clear()
        with replace_when_whole(folder / "other.mp4"):
            assert len(list(folder.iterdir())) == 3, "what a living process writes stays"
        (folder / "other.mp4").unlink()
        process.kill()


def test_what_a_killed_process_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_while_it_writes(tmp_path)
    left = list(tmp_path.iterdir())
    assert len(left) == 2
    others = [".hidden", "out.part.mp4", ".a.0123456789ab.partial", ".a.b.part.mp4"]
    for name in others:
        (tmp_path / name).touch()
    files._looked_through.clear()
    with replace_when_whole(tmp_path / "new.mp4"):
        assert not any(path.exists() for path in left)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "new.mp4"])


def test_without_locks_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    (tmp_path / ".out.0123456789ab.part.mp4").touch()
    monkeypatch.setattr("fcntl.flock", no_locks)
    files._looked_through.clear()
    with replace_when_whole(tmp_path / "new.mp4") as part:
        part.write_text("new")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_filled_keeps_its_other_files(tmp_path: Path) -> None:
    target = tmp_path / "frames"
    target.mkdir()
    (target / "1.png").write_text("old")
    (target / "mine.txt").write_text("mine")

    def fill(text: str, *names: str) -> None:
        with replace_folder_when_whole(target, fill=True) as part:
            for name in names:
                (part / name).write_text(text)

    with pytest.raises(FileNotFoundError):
        fill("new", "1.png", "no/where.png")
    assert (target / "1.png").read_text() == "old"
    fill("new", "1.png", "2.png")
    found = {path.name: path.read_text() for path in target.iterdir()}
    assert found == {"1.png": "new", "2.png": "new", "mine.txt": "mine"}
    # Before anything is replaced, all is found out that cannot be.
    (target / "3.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"3\.png"):
        fill("newer", "1.png", "3.png")
    assert (target / "1.png").read_text() == "new"


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://bucket", "gs:/bucket", "file:///tmp"])
def test_an_address_is_no_folder(name: str) -> None:
    with pytest.raises(UserError, match=f"--out={re.sub('/+', '/+', name)}: an address"):
        local(Path(name), "--out")
    for fine in ("runs/a", "/tmp/a:b/c", "C:/runs"):
        assert local(Path(fine), "--out") == Path(fine)


def test_a_user_without_a_home_is_told_how_to_have_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("JAXDEBLUR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(UserError, match="no home folder for the cache; set JAXDEBLUR_CACHE"):
        files.cache_folder()
    monkeypatch.setenv("JAXDEBLUR_CACHE", "gs://bucket/cache")
    with pytest.raises(UserError, match="JAXDEBLUR_CACHE=gs:/bucket/cache: an address"):
        files.cache_folder()
