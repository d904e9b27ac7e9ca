"""``--part=3/16``: which share of a video this process restores, and the names of its files.

This module looks at names and the environment only; it imports neither JAX nor FFmpeg.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from jaxdeblur.errors import UserError

# The number of a task in an array of SLURM, and of a pod in an Indexed Job of Kubernetes.
_SLURM, _SLURM_FIRST, _KUBERNETES = (
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_MIN",
    "JOB_COMPLETION_INDEX",
)


class Portion(tuple[int, int]):
    """A part of a video: its number, from 1, and how many parts there are."""

    def __new__(cls, text: str) -> Portion:
        """Parses ``3/16``, or ``/16``, whose number comes from the array that this task is of.

        Raises:
          UserError: the text has another form, or there is no such part.
        """
        if not (found := re.fullmatch(r"(\d{0,6})/([1-9]\d{0,5})", text, re.ASCII)):
            raise UserError(f"--part={text[:50]}: must be NUMBER/PARTS, such as 3/16, or /PARTS")
        number = int(found[1]) if found[1] else _number_in_the_array(text)
        of = int(found[2])
        if not 1 <= number <= of:
            raise UserError(f"--part={text}: there is no part {number} of {of}; they begin at 1")
        return super().__new__(cls, (number, of))

    @property
    def number(self) -> int:
        """Which part, from 1."""
        return self[0]

    @property
    def of(self) -> int:
        """How many parts there are."""
        return self[1]

    def __str__(self) -> str:
        return f"part {self.number} of {self.of}"

    def path(self, output: Path) -> Path:
        """Returns the part's file, in the container of the whole result."""
        width = len(str(self.of))
        return folder_of(output) / f"{self.number:0{width}}-of-{self.of}{output.suffix}"

    def record(self, output: Path) -> Path:
        """Returns the file that says which frames the part has; it is written last."""
        return self.path(output).with_suffix(".json")


def folder_of(output: Path) -> Path:
    """Returns the folder of the parts of a result, beside it."""
    return output.with_name(f"{output.name}.parts")


def _number_in_the_array(text: str) -> int:
    slurm, kubernetes = os.environ.get(_SLURM, ""), os.environ.get(_KUBERNETES, "")
    if slurm.isdigit():
        # An array may begin at 0 or at 1.
        return int(slurm) - int(os.environ.get(_SLURM_FIRST, "1")) + 1
    if kubernetes.isdigit():
        return int(kubernetes) + 1
    raise UserError(
        f"--part={text}: neither {_SLURM} nor {_KUBERNETES} says which part; give NUMBER/PARTS"
    )
