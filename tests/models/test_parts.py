"""Parts of a restorer: who takes what from whom, and which of them look at an opening."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parts import (
    FRAME,
    REPEATED,
    RESTORED,
    Part,
    directly,
    learnt,
    looking,
    run_parts,
    start_parts,
)
from jaxdeblur.models.registry import network_from_json, network_to_json
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.restorer import PathRestorer


def counted(name: str, takes: tuple[str, ...], gives: str, *, learns: bool = False) -> Part:
    """A part whose state counts its steps, and whose result names what it is made of."""

    def step(state: int, *given: Any) -> tuple[int, str]:
        return state + 1, f"{name}{state}({', '.join(map(str, given))})"

    return Part(name, takes, gives, lambda *size: len(size) - 2, step, learns)


PARTS = [
    counted("gather", (FRAME, REPEATED), "window"),
    counted("learn", ("window",), "known", learns=True),
    counted("below", (FRAME,), "base"),
    counted("end", ("base", "known"), RESTORED),
]


def test_each_part_takes_what_others_gave_and_keeps_its_own_state() -> None:
    states = start_parts(PARTS, 1, 1, 1)
    states, made = run_parts(PARTS, directly, states, {FRAME: "f", REPEATED: False})
    assert made[RESTORED] == "end1(below1(f), learn1(gather1(f, False)))"
    assert states == dict.fromkeys(("gather", "learn", "below", "end"), 2)


def test_an_opening_is_seen_by_what_learns_and_its_sources_alone() -> None:
    first = looking(PARTS)
    assert [part.name for part in first] == ["gather", "learn"]
    states, _ = run_parts(first, directly, start_parts(first, 1, 1, 1), {FRAME: 0, REPEATED: False})
    assert learnt(first, states) == {"learn": 2}, "the frames are given once more"
    assert looking([part for part in PARTS if not part.learns]) == []


def test_results_of_parts_left_out_may_be_given() -> None:
    states, made = run_parts(PARTS[3:], directly, {"end": 5, "other": 7}, {"base": 1, "known": 2})
    assert made[RESTORED] == "end5(1, 2)"
    assert states == {"end": 6, "other": 7}


def test_a_network_is_a_single_part() -> None:
    network = models.build(StrcnnConfig(m=0, width=4, blocks=1, head_width=0, residual=True))
    (part,) = network.parts()
    frame = jnp.asarray(np.random.default_rng(0).random((1, 6, 8, 3), np.float32))
    _, restored = part.step(part.start(1, 6, 8), frame, False)
    np.testing.assert_array_equal(restored, network.step(network.initial_state(1, 6, 8), frame)[1])


def test_a_system_is_built_from_its_config_and_written_with_those_of_its_networks() -> None:
    base = StrcnnConfig(width=4, blocks=1, scales=(2, 1))
    fusion = StrcnnConfig(m=0, width=4, blocks=1, head_width=0, residual=True, of_maps=True)
    config = PathsConfig(base=base, fusion=fusion, light="linear")
    written = json.loads(json.dumps(network_to_json(config)))
    assert written["fusion"]["kind"] == "StrcnnConfig"
    assert network_from_json(written, "here") == config
    model = models.build(config)
    assert isinstance(model, PathRestorer)
    assert [part.name for part in model.parts()][:4] == ["motion", "watch", "steady", "fit"]
    assert model.context == (0, 0), "of the network that is trained"
    for network in (base, dataclasses.replace(fusion, of_maps=False)):
        with pytest.raises(UserError, match="must take their maps"):
            models.build(PathsConfig(fusion=network))
    old = {"kind": "StrcnnConfig", "m": 0, "over_paths": "strcnn_dtb_choice"}
    with pytest.raises(UserError, match="w: a network over strcnn_dtb_choice from a development"):
        network_from_json(old, "w")
    with pytest.raises(UserError, match="w: base: the network's kind is 'Nothing'"):
        network_from_json({"kind": "PathsConfig", "base": {"kind": "Nothing"}}, "w")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (PathsConfig(), ["watch", "steady"]),
        (PathsConfig(duty=0.5), ["watch", "steady"]),
        (PathsConfig(duty=0.5, light="stored"), ["steady"]),
        (PathsConfig(duty=0.5, stabilised="no"), ["watch"]),
        (PathsConfig(duty=0.5, light="stored", stabilised="no"), []),
    ],
)
def test_only_what_is_unknown_is_watched(config: PathsConfig, names: list[str]) -> None:
    parts = PathRestorer(config).parts()
    assert [part.name for part in parts] == ["motion", *names, "fit", "light", "filter", "fusion"]
    assert [part.name for part in looking(parts)] == (["motion", *names] if names else [])
