"""Files that are never half written: output goes beside its target and is renamed when whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdeblur.errors import UserError


@contextlib.contextmanager
def replace_when_whole(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path beside ``target`` to write to; renames it to ``target`` if the body succeeds.

    If the body raises (ctrl-C too), what was written is removed and ``target`` is as it was. The
    yielded name keeps the target's suffix, by which writers choose their format.

    Raises:
      UserError: nothing can be written there, or ``target`` is a folder.
    """
    target = Path(target)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{target.stem[:80]}.", suffix=f".part{target.suffix}", dir=target.parent
        )
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        # mkstemp makes the file private; the target gets the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        try:
            os.replace(part, target)
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder_when_whole(target: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for a folder that does not exist yet: yields a new folder beside ``target``."""
    target = Path(target)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name[:80]}.part", dir=target.parent))
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON, whole or not at all."""
    with replace_when_whole(target) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")
