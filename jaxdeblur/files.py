"""Files that are never half written: output goes beside its target and is renamed when complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxdeblur.console import AT_INTERRUPTION, tell
from jaxdeblur.errors import UserError

UNFINISHED: list[Path] = []
"""What is written and not renamed yet; a signal that ends the command removes it."""


def _remove_unfinished() -> None:
    for path in list(UNFINISHED):
        with contextlib.suppress(OSError):
            # Renamed first, so that no thread can write another file into a folder.
            remove(path.rename(path.with_name(f"{path.name}.left")))


AT_INTERRUPTION.append(_remove_unfinished)


def remove(path: Path) -> None:
    """Removes a file, or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
    _remove_abandoned(target.parent)
    with contextlib.ExitStack() as held:
        held.enter_context(_unfinished(part))
        try:
            held.enter_context(_held(part, lambda: part.touch(exist_ok=False)))
            if target.exists():
                shutil.copymode(target, part)
        except OSError as error:
            raise UserError(f"{given}: cannot be written: {error.strerror}") from error
        yield part
        os.replace(part, target)


@contextlib.contextmanager
def replace_folder_when_whole(
    target: str | os.PathLike[str], *, fill: bool = False
) -> Iterator[Path]:
    """Does the same for a folder that does not exist yet or is empty: yields a new folder.

    With ``fill`` the folder may hold files. Those of the same names are replaced, others stay.

    Raises:
      OSError: the folder cannot be written.
    """
    target = Path(target)
    there = target.is_dir()
    is_empty = there and not any(target.iterdir())
    # A link, a mounted volume or the current folder cannot be replaced by name: it is filled.
    there = there and (
        (fill and not is_empty)
        or (is_empty and (target.is_symlink() or target.is_mount() or target.samefile(".")))
    )
    where = target if there else target.parent
    part = where / f".{target.name[:20]}.part{secrets.token_hex(6)}"
    _remove_abandoned(where)
    with _unfinished(part), _held(part, part.mkdir):
        yield part
        if there:
            entries = list(part.iterdir())
            for entry in entries:  # before any is replaced
                if (old := target / entry.name).is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(old))
            for entry in entries:
                os.replace(entry, target / entry.name)
            return
        os.rename(part, target)


# The names of unfinished files and folders, also as a signal renames them before their removal.
_UNFINISHED_NAME = re.compile(
    r"\..{0,20}\.([0-9a-f]{12}\.part(\..*)?|part[0-9a-f]{12})(\.left)?", re.DOTALL
)
_looked_through: set[Path] = set()


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left unfinished in a folder; looks once into each.

    Who writes an unfinished file or folder holds a lock on it, which the system releases however
    the process ends.
    """
    if folder in _looked_through:
        return
    _looked_through.add(folder)
    with contextlib.suppress(OSError):  # who writes there reports the error
        for entry in list(os.scandir(folder)):
            if _UNFINISHED_NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError), _opened_to_lock(Path(entry.path)) as descriptor:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(Path(entry.path))


@contextlib.contextmanager
def _held(path: Path, create: Callable[[], None]) -> Iterator[None]:
    """Creates a file or folder and holds a lock on it, unless the file system has none."""
    with contextlib.ExitStack() as opened:
        while True:
            create()
            with contextlib.suppress(OSError):
                descriptor = opened.enter_context(_opened_to_lock(path))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():  # another process may have taken it for abandoned before the lock
                break
        yield


@contextlib.contextmanager
def _opened_to_lock(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
            # A process that waits for the removed file merely re-checks the result.
            held.enter_context(_unfinished(lock))
        yield


def is_address(name: str) -> bool:
    """Returns whether a name is an address, such as gs://bucket/run or https://host/in.mp4."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", name) is not None


def local(folder: Path, option: str) -> Path:
    """Returns ``folder``, which ``option`` names.

    Raises:
      UserError: it is an address, such as gs://bucket/run, which would become a local folder.
    """
    if is_address(str(folder)):
        raise UserError(
            f"{option}={folder}: an address, not a local folder; mount it, or copy the files there "
            "afterwards"
        )
    return folder


def safe_name(name: str) -> str:
    """Returns a file name that cannot leave its folder, whatever a video is called."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80] or "unnamed"


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON, completely or not at all."""
    with replace_when_whole(target) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    """Returns ``$JAXDEBLUR_CACHE``, or jaxdeblur in ``$XDG_CACHE_HOME``, by default ~/.cache.

    Raises:
      UserError: none of them is set, and the user has no home folder.
    """
    if own := os.environ.get("JAXDEBLUR_CACHE"):
        return local(Path(own), "JAXDEBLUR_CACHE")
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "jaxdeblur"
    try:
        return Path.home() / ".cache" / "jaxdeblur"
    except (RuntimeError, KeyError) as error:  # a user without an entry in the password file
        raise UserError(
            "this user has no home folder for the cache; set JAXDEBLUR_CACHE to a folder"
        ) from error
