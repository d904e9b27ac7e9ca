#!/usr/bin/env python3
"""Scores a model on a data set: ``python evaluate.py --ckpt=RUN``; writes metrics and a report."""

from jaxdeblur.commands.evaluate import main
from jaxdeblur.console import run_command

if __name__ == "__main__":
    run_command(main, "evaluate.py", together=True)
