"""What every preset says of itself, as ``train.py --help`` prints it."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from jaxdeblur.errors import run_command
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
