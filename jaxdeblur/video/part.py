"""The part of a file that is read, and the timestamps in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from typing import Any


@dataclasses.dataclass
class Part:
    """A part of a file, or the whole file; times are in seconds.

    Attributes:
      start: its beginning, from the beginning of the file.
      duration: its length; None for everything up to the end.
      shift: subtracted from every time in the file, so that the part begins at 0.
    """

    start: Fraction
    duration: Fraction | None
    shift: Fraction = Fraction(0)

    @property
    def is_whole(self) -> bool:
        """Whether the whole file is read."""
        return not self.start and self.duration is None

    def moved(self, time: Fraction) -> Fraction:
        """Converts a time of the file to a time of the part."""
        return time - self.shift

    def ends_before(self, time: Fraction) -> bool:
        """Returns whether a time of the part is at or after its end."""
        return self.duration is not None and time >= self.duration

    def taken(self, packets: Iterable[Any]) -> list[Any]:
        """Returns the packets that lie in the part, with times moved into it."""
        return [self._move(packet) for packet in packets if self._holds(packet)]

    def chapters(self, chapters: list[Any]) -> list[Any]:
        """Returns the chapters that overlap the part, cut to it."""
        if self.is_whole:
            return chapters
        kept = []
        for chapter in chapters:
            unit = chapter["time_base"]
            begin, end = (self.moved(chapter[key] * unit) for key in ("start", "end"))
            if end > 0 and not self.ends_before(begin):
                begin, end = max(begin, Fraction(0)), min(end, self.duration or end)
                kept.append({**chapter, "start": round(begin / unit), "end": round(end / unit)})
        return kept

    def _holds(self, packet: Any) -> bool:
        if self.is_whole or packet.pts is None:
            return self.is_whole
        time = self.moved(packet.pts * packet.time_base)
        return time >= 0 and not self.ends_before(time)

    def _move(self, packet: Any) -> Any:
        # Without a shift, packets are left alone: some have timestamps that cannot be set.
        if self.shift:
            shift = round(self.shift / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
        return packet
