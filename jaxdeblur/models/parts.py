"""A restorer as a pipeline of parts, and the one function that passes a frame through them.

A part has a start and a step, as a solver of Optimistix (Rader, Lyons and Kidger, 2024) has
``init`` and ``step``: the step is a pure function of its own state and of what other parts made of
the frame. Whoever restores runs the parts: a stream each as a program of its own, a scan all in
one. ``run_parts`` knows what each part takes, and nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

FRAME, REPEATED = "frame", "repeated"
"""What comes in: a frame ``B H W 3`` in [0, 1], padded, and whether it is the last, once more."""

RESTORED = "restored"
"""What the last part gives: the frame of ``lookahead`` steps ago, ``B H W 3``."""

States: TypeAlias = dict[str, Any]
"""The state of each part, by its name."""


class Part(NamedTuple):
    """One part of a restorer: a function with a state."""

    name: str
    takes: tuple[str, ...]
    """What it takes: FRAME, REPEATED, or what parts before it give."""
    gives: str
    """The name of its result."""
    start: Callable[[int, int, int], Any]
    """Returns its state before the first frame of ``batch`` videos of ``height x width``."""
    step: Callable[..., tuple[Any, Any]]
    """Maps its state and what it takes to its new state and its result."""
    learns: bool = False
    """Whether it first sees the opening of a video, and keeps what it learnt."""
    whole: bool = False
    """Whether it runs no network: its program is then the same whatever tiles networks run in."""
    waits: bool = False
    """Whether it is only about the frame that is due, and keeps its state until there is one."""


RunPart: TypeAlias = Callable[..., tuple[Any, Any]]
"""Runs a part: maps the part, its state and what it takes to its new state and its result."""


def directly(part: Part, state: Any, *given: Any) -> tuple[Any, Any]:
    """Runs a part where it is called: a ``RunPart``."""
    return part.step(state, *given)


def start_parts(parts: Iterable[Part], batch: int, height: int, width: int) -> States:
    """Returns the states before the first frame of ``batch`` videos of a padded size."""
    return {part.name: part.start(batch, height, width) for part in parts}


def run_parts(
    parts: Iterable[Part], run: RunPart, states: States, given: dict[str, Any]
) -> tuple[States, dict[str, Any]]:
    """Passes a frame through the parts; returns their new states and all results by name.

    Args:
      parts: in the frame's order.
      run: runs one of them.
      states: of the parts, and perhaps of others, which are kept.
      given: FRAME and REPEATED, or results of parts that are left out.
    """
    states, results = dict(states), dict(given)
    for part in parts:
        taken = [results[name] for name in part.takes]
        states[part.name], results[part.gives] = run(part, states[part.name], *taken)
    return states, results


def looking(parts: Sequence[Part]) -> list[Part]:
    """Returns the parts that look at the opening of a video: those that learn, and their sources.

    Afterwards, only the states of parts that learn are kept (``learnt``).
    """
    chosen: list[Part] = []
    for part in reversed(parts):
        if part.learns or any(part.gives in other.takes for other in chosen):
            chosen.insert(0, part)
    return chosen


def learnt(parts: Iterable[Part], states: States) -> States:
    """Returns the states that are kept after the opening of a video."""
    return {part.name: states[part.name] for part in parts if part.learns}
