"""Runs a part."""

from benchmarks.gpu_day import main
from jaxdeblur.console import run_command

run_command(main, "benchmarks.gpu_day")
