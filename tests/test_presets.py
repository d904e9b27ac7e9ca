"""The description of every preset, as printed by ``train.py --help``."""

from __future__ import annotations

import functools
import re
import runpy
import sys
from pathlib import Path

import pytest

from jaxdeblur import models
from jaxdeblur.console import run_command
from jaxdeblur.models.parameters import count, outline
from jaxdeblur.presets import PRESETS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_says_what_to_expect_or_that_it_was_never_trained(name: str) -> None:
    _, command, expect = PRESETS[name].described(name)
    assert command == f"python train.py --model={name}"
    assert re.match(r"(One GPU|Two CPU cores)\b", expect)
    measured = re.search(r"\d+ (minutes|hours?)\b.*[+-]\d+\.\d+ dB", expect)
    assert measured or "Never trained" in expect


def test_help_prints_the_command_and_what_to_expect_of_every_preset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    main = runpy.run_path(str(ROOT / "train.py"), run_name="train")["main"]
    with pytest.raises(SystemExit) as ended:
        run_command(main, "train.py")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, preset in PRESETS.items():
        assert " ".join(preset.described(name)[1:]) in said


@pytest.mark.stress  # It builds every network.
def test_parameters_are_as_many_as_presets_and_readme_say() -> None:
    # Other tests load the examples, each of which adds a preset with its own name.
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    ours = {name: preset for name, preset in PRESETS.items() if name not in examples}
    said: dict[str, set[str]] = {name: set() for name in ours}
    for name, preset in ours.items():
        said[name].update(re.findall(r"\(([\d.]+ [kM]) parameters\)", preset.about))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \| .* \| ([\d., kM]+) \| .*\|$", readme, re.M)
    for names, numbers in rows:
        each = re.findall(r"`(\w+)`", names)
        of_each = numbers.split(", ")
        for name, number in zip(each, of_each * (len(each) // len(of_each)), strict=True):
            said[name].add(number)
    assert {name for name, numbers in said.items() if not numbers} == set()
    for name, numbers in said.items():
        parameters = count(outline(functools.partial(models.build, PRESETS[name].network))[1])
        for number in numbers:
            digits, unit = number.split()
            decimals = len(digits.partition(".")[2])
            exact = parameters / {"k": 1e3, "M": 1e6}[unit]
            assert f"{exact:.{decimals}f}" == digits, f"{name}: {parameters:,}, not {number}"
