"""Runs a notebook's code cells as Jupyter would, without Jupyter: in order, in one process.

    python tests/notebook.py examples/tour.ipynb

As in Jupyter, an event loop is running, and the value at the end of a cell is drawn.
"""

from __future__ import annotations

import ast
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any


def code_cells(path: Path) -> list[str]:
    """Returns the source of each code cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


async def run(cells: list[str]) -> None:
    """Runs the cells; prints how long each took and the size of the picture that it draws."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells, 1):
        began = time.monotonic()
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        where = f"cell {number}"
        exec(compile(tree, where, "exec"), names)
        value = last and eval(compile(ast.Expression(last.value), where, "eval"), names)
        drawn = ""
        if hasattr(value, "_repr_png_"):
            drawn = f", a picture of {len(value._repr_png_()) / 1e3:.0f} kB"
        print(f"{where}: {time.monotonic() - began:.0f} s{drawn}", flush=True)


if __name__ == "__main__":
    asyncio.run(run(code_cells(Path(sys.argv[1]))))
