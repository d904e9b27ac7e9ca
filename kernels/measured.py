"""What was measured to be fastest, by GPU, operation and size: what "auto" goes by.

They are the rows of `measured.json` beside this file. Where it or a GPU in it is missing, nothing
was measured, and the log says so.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax import Array

TABLE = Path(__file__).with_name("measured.json")


def fastest(
    generation: int | None, operation: str, backward: bool, operands: Sequence[Array]
) -> list[str] | None:
    """The implementations from the fastest on, at the nearest size measured; None if none was.

    A GPU's rows are {"generation": 90, "operation", "backward", "dtype", "pixels", "channels",
    "maps", "milliseconds": {implementation: of one call}}.
    """
    size = size_of(operation, operands)
    like = {"generation": generation, "operation": operation, "backward": backward}
    like["dtype"] = size.pop("dtype")
    rows = [row for row in _rows() if all(row[key] == value for key, value in like.items())]
    if not rows:
        return None

    def distance(row: dict[str, Any]) -> float:
        return sum(abs(math.log(row[name] / value)) for name, value in size.items())

    times = min(rows, key=distance)["milliseconds"]
    return sorted(times, key=times.__getitem__)


def size_of(operation: str, operands: Sequence[Array]) -> dict[str, Any]:
    """The dtype, pixels (of all frames together), channels and maps of an operation's operands."""
    match operation:
        case "softmax_squeeze":
            logits, values = operands
            pixels, maps = math.prod(values.shape[:-1]), logits.shape[-2]
        case "projected_squeeze":
            values, weights, _ = operands
            pixels, maps = math.prod(values.shape[:-1]), weights.shape[-1]
        case _:
            values = operands[-1]
            pixels, maps = math.prod(operands[0].shape[:-1]), values.shape[-2]
    dtype, channels = values.dtype.name, values.shape[-1]
    return {"dtype": dtype, "pixels": pixels, "channels": channels, "maps": maps}


@functools.cache
def _rows() -> list[dict[str, Any]]:
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else []
