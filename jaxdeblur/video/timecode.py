"""Time codes of video (SMPTE ST 12-1): the code of a later frame, also where codes are dropped."""

from __future__ import annotations

import re
from fractions import Fraction


def later(code: str, frames: int, rate: Fraction) -> str | None:
    """Returns the time code ``frames`` after ``code``; None if that is no time code of this rate.

    Args:
      code: HH:MM:SS:FF, or HH:MM:SS;FF where codes are dropped, as at 30000/1001 frames/s.
      frames: how many frames later.
      rate: frames per second.
    """
    per_second = round(rate)
    found = re.fullmatch(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)", code.strip(), re.ASCII)
    if found is None or not 0 < per_second < 100:
        return None
    hours, minutes, seconds, number = (int(found[place]) for place in (1, 2, 3, 5))
    if minutes > 59 or seconds > 59 or number >= per_second:
        return None
    # Of each minute but every tenth, the first codes are dropped: 2 of 30, 4 of 60.
    drops = per_second // 15 if found[4] != ":" else 0
    in_ten = 600 * per_second - 9 * drops
    whole_minutes = 60 * hours + minutes
    count = (60 * whole_minutes + seconds) * per_second + number
    count -= drops * (whole_minutes - whole_minutes // 10)
    count = (count + frames) % (24 * 6 * in_ten)
    tens, rest = divmod(count, in_ten)
    count += 9 * drops * tens
    if rest >= 60 * per_second:
        count += drops * ((rest - 60 * per_second) // (60 * per_second - drops) + 1)
    seconds, number = divmod(count, per_second)
    minutes, hours = seconds // 60 % 60, seconds // 3600 % 24
    return f"{hours:02}:{minutes:02}:{seconds % 60:02}{found[4]}{number:02}"
