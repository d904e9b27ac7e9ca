"""Files that are never half written: output goes beside its target and is renamed when complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdeblur.errors import UNFINISHED, UserError, remove, tell


@contextlib.contextmanager
def replace_when_whole(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path beside ``target`` to write to; renames it to ``target`` if the body succeeds.

    If the body raises (also by ctrl-C), the new file is removed and ``target`` is unchanged. The
    yielded name keeps the target's suffix, by which writers choose their format. A link is kept,
    and the file that it points to is replaced. The permissions of an existing file are kept.

    Raises:
      UserError: ``target`` cannot be written, or is a folder or a device.
    """
    given, target = target, Path(os.path.realpath(target))
    if os.path.lexists(target) and not target.is_file():
        raise UserError(f"{given}: cannot be written: not a regular file")
    # Named before it is created, so that an interrupted creation leaves nothing behind.
    suffix = f".part{Path(given).suffix}"
    part = target.parent / f".{target.stem[:20]}.{secrets.token_hex(6)}{suffix}"
    with _unfinished(part):
        try:
            part.touch(exist_ok=False)
            if target.exists():
                shutil.copymode(target, part)
        except OSError as error:
            raise UserError(f"{given}: cannot be written: {error.strerror}") from error
        yield part
        os.replace(part, target)


@contextlib.contextmanager
def replace_folder_when_whole(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Does the same for a folder that does not exist yet or is empty: yields a new folder."""
    target = Path(target)
    # A link, a mounted volume or the current folder cannot be replaced by name: it is filled.
    there = target.is_dir() and not any(target.iterdir())
    there = there and (target.is_symlink() or target.is_mount() or target.samefile("."))
    where = target if there else target.parent
    part = where / f".{target.name[:20]}.part{secrets.token_hex(6)}"
    with _unfinished(part):
        part.mkdir()
        yield part
        if there:
            for entry in list(part.iterdir()):
                os.rename(entry, target / entry.name)
            return
        os.rename(part, target)


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[None]:
    """Removes ``path``, which the body may create, at the end or when a signal ends the process."""
    UNFINISHED.append(path)
    try:
        yield
    finally:
        remove(path)
        UNFINISHED.remove(path)


@contextlib.contextmanager
def made_once(target: Path) -> Iterator[None]:
    """Lets one process make ``target``, while others that need it wait and then find it there.

    On a file system without locks each process makes its own.
    """
    lock = target.with_name(f".{target.name}.lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # the caller's own write reports the error
            file = held.enter_context(open(lock, "wb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"waiting for another process to create {target}")
                fcntl.flock(file, fcntl.LOCK_EX)
            # A process that waits for the removed file only checks again what has been made.
            held.enter_context(_unfinished(lock))
        yield


def safe_name(name: str) -> str:
    """Returns a file name that cannot leave its folder, whatever a video is called."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80] or "unnamed"


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON, completely or not at all."""
    with replace_when_whole(target) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    """Returns ``$JAXDEBLUR_CACHE``, or jaxdeblur in ``$XDG_CACHE_HOME``, by default ~/.cache."""
    if own := os.environ.get("JAXDEBLUR_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdeblur"
