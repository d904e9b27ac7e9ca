"""What the page shows about files and progress, as HTML; it imports neither JAX nor FFmpeg."""

from __future__ import annotations

import dataclasses
from html import escape
from pathlib import Path
from typing import Any

from jaxdeblur.weights.shipped import Use


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
      fast: whether frames are restored without blur paths.
      strength: how much of the restoration is mixed into the input, 0 to 1.
      start: where in a video to begin, in seconds.
      seconds: how much of a video to restore; None for the rest.
    """

    fast: bool = False
    strength: float = 1.0
    start: float = 0.0
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """A file that was dropped, as its header describes it.

    Attributes:
      path: the file.
      is_video: whether it is a video; otherwise it is a photograph.
      height, width: in pixels, upright.
      frames: how many there are, if the file states it.
      rate: frames per second of a video.
      facts: what was found out about the shutter (restoration/findings.py); None before that.
    """

    path: Path
    is_video: bool
    height: int
    width: int
    frames: int | None
    rate: float | None
    facts: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def length(self) -> float | None:
        """Seconds of the video, if the file states them."""
        return self.frames / self.rate if self.frames and self.rate else None

    def use(self, fast: bool) -> Use:
        """The kind of weights that the file needs."""
        if not self.is_video:
            return "fast photograph" if fast else "photograph"
        return "fast video" if fast else "video"

    def frames_in(self, start: float, seconds: float | None) -> int | None:
        """Returns how many frames a part has, if the file states its length."""
        if not self.is_video:
            return 1
        if self.length is None or self.rate is None:
            return None if seconds is None else round(seconds * (self.rate or 25))
        rest = max(0.0, self.length - start)
        return max(1, round(self.rate * (rest if seconds is None else min(rest, seconds))))


@dataclasses.dataclass
class FileProgress:
    """How far the restoration of one file is.

    Attributes:
      name: the file's.
      number: which of the files it is, from 0.
      of: how many files there are.
      done: frames restored.
      total: frames to restore, if known.
      left: seconds left, once known.
      notes: messages, such as what is not kept.
      seconds: how long it took, at the end.
      facts: what was found out about the shutter, at the end.
      result: the number of the result, at the end.
      error: why it ended early, in one line.
      crash: a fault of this program.
    """

    name: str
    number: int
    of: int
    done: int = 0
    total: int | None = None
    left: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    result: int | None = None
    error: str | None = None
    crash: Exception | None = None


def in_words(facts: dict[str, Any]) -> str:
    """Returns what was found out about a video (restoration/findings.py), in words."""
    parts = []
    if "duty" in facts:
        parts.append(f"shutter open {facts['duty']:.0%} of the time")
    if "light" in facts:
        parts.append(f"in {facts['light']} light")
    for name, told in facts.items():
        if isinstance(told, bool):
            parts.append(name if told else f"not {name}")
        elif name not in ("duty", "light"):
            parts.append(f"{name} {told}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time in words that are as exact as the guess: ``40 s``, ``3 min``, ``1:20 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}:{minutes:02} h"


def files(found: list[Found], wrong: list[str], looking: Path | None = None) -> str:
    """Returns a line for each file: what it is, or what is wrong with it.

    Args:
      found: the files that can be restored.
      wrong: a message for each of the others.
      looking: the video whose shutter is being looked for.
    """
    lines = []
    for each in found:
        said = [f"{each.width}×{each.height}"]
        if each.is_video:
            if each.length is not None:
                said.append(f"{duration(each.length)}, {each.frames} frames")
            if each.facts is not None:
                said.append(in_words(each.facts) or "nothing moves, so no shutter is found")
            elif each.path == looking:
                said.append("looking for the shutter …")
        else:
            said.append("a photograph")
        lines.append(f"<li><b>{escape(each.name)}</b>: {escape('; '.join(said))}</li>")
    lines += [f'<li class="wrong">{escape(message)}</li>' for message in wrong]
    return f'<ul class="files">{"".join(lines)}</ul>' if lines else ""


def expected(guess: tuple[float, bool] | None, has_files: bool) -> str:
    """Returns how long restoring may take."""
    if guess is None:
        return "The file does not state its length." if has_files else ""
    seconds, is_measured = guess
    doubt = "" if is_measured else ", a guess until this machine has restored some frames"
    return f"Takes about {duration(seconds)}{doubt}."


def progress(state: FileProgress | None) -> str:
    """Returns a bar with the number of frames and the time left, and the messages."""
    if state is None:
        return ""
    which = f" ({state.number + 1} of {state.of})" if state.of > 1 else ""
    share = state.done / state.total if state.total else 0.0
    if state.error is not None:
        said = state.error if state.name in state.error else f"{state.name}: {state.error}"
        return f'<p class="wrong">{escape(said)}</p>'
    frames = f"{state.done}{f' of {state.total}' if state.total else ''} frames"
    if state.seconds is not None:
        what = "done" if state.done == 1 else f"{state.done} frames"
        share, text = 1.0, f"{what} in {duration(state.seconds)}"
        if found := in_words(state.facts):
            text += f"; {found}"
    elif not state.done:
        text = "getting ready; the first time at a size takes up to a minute or two …"
    else:
        text = frames if state.left is None else f"{frames}, {duration(state.left)} left"
    notes = "".join(f"<li>{escape(note)}</li>" for note in state.notes)
    return (
        f"<p>{escape(state.name + which)}: {escape(text)}</p>"
        f'<div class="bar"><div style="width:{100 * min(1.0, share):.1f}%"></div></div>'
        f'<ul class="files">{notes}</ul>'
    )
