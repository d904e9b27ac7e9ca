"""A few cases of ``tests/stress/fuzz.py``, and a search for unsafe ways to read files."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdeblur import models
from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.files import write_json
from jaxdeblur.models.registry import network_from_json
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import Parser, add_fields, from_json, read_fields
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.weights.load import load_model

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("jaxdeblur", "kernels", ".")
    for path in (ROOT / folder).glob("**/*.py" if folder != "." else "*.py")
)


@pytest.mark.stress
def test_random_damage_ends_well_or_in_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.stress.fuzz", "--cases=40", "--seed=7", "--workers=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
            banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
            assert not banned & {module.split(".")[0] for module in modules}
        if isinstance(node, ast.keyword):
            assert node.arg != "shell"
            if node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is False
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            # np.load reads pickles only on request; yaml.load and the others always may.
            assert called not in {"eval", "exec", "compile", "os.system", "yaml.load"}
            if called == "torch.load":
                assert "weights_only=True" in map(ast.unparse, node.keywords)
            if called == "exec_module" or called.endswith(".exec_module"):
                assert path.name == "options.py", (
                    "only --extension runs a file, which its user names"
                )


# Errors found by fuzzing.


@pytest.mark.parametrize("field", ["width", "blocks", "m"])
def test_an_unreasonably_large_network_is_refused_before_it_takes_memory(field: str) -> None:
    config = dataclasses.replace(StrcnnConfig(m=1, width=4, blocks=1), **{field: 10**9})
    with pytest.raises(UserError, match=f"{field}=1000000000: a network cannot have numbers"):
        models.build(config)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"preset": ' + "9" * 5000 + "}", "", "\ufeff{}", "null", '{"preset": 1}'],
)
def test_a_config_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [10**30, 2**31, True, 1.5, "2", None])
def test_numbers_that_32_bits_do_not_hold_are_refused(value: object) -> None:
    with pytest.raises(UserError, match="steps"):
        from_json(TrainingConfig, {"steps": value}, "config.json")


def test_numbers_on_the_command_line_are_whole_and_bounded() -> None:
    parser = Parser()
    add_fields(parser, TrainingConfig(), "training")
    for text in ("9" * 25, "9" * 5000, "1e3", "0x10", ""):
        with pytest.raises(UserError, match="--steps"):
            read_fields(parser.parse_args([f"--steps={text}"]), TrainingConfig())


def test_a_folder_where_a_file_is_to_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(UserError, match=r"metrics\.json: cannot be written: not a regular file"):
        write_json(tmp_path / "metrics.json", {})
    with pytest.raises(UserError, match=r"nowhere.*cannot be written"):
        write_json(tmp_path / "nowhere" / "metrics.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("kind", [[], {}, None, 1, "none"])
def test_a_network_of_no_known_kind_is_one_line(kind: object) -> None:
    with pytest.raises(UserError, match=r"w\.safetensors: the network's kind"):
        network_from_json({"kind": kind}, "w.safetensors")


def test_what_the_system_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").write_text("a file")
    for refused in (
        lambda: (tmp_path / ("x" * 5000)).is_dir(),
        lambda: (tmp_path / "videos" / "more").mkdir(),
        lambda: (tmp_path / "videos").mkdir(),
    ):
        with pytest.raises(SystemExit) as ended:
            run_command(refused, "evaluate.py")
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("evaluate.py: error: ")
        assert said.count("\n") == 1
        assert re.search("File name too long|Not a directory|File exists", said)
