#!/usr/bin/env python3
"""Scores a model on a data set: ``python evaluate.py --ckpt=RUN``; writes metrics and a report."""

from jaxdeblur.commands import run
from jaxdeblur.commands.evaluate import main

if __name__ == "__main__":
    run(main, "evaluate.py", together=True)
