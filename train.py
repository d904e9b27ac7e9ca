#!/usr/bin/env python3
"""Trains a model: ``python train.py --model=strcnn_dtb``. Each field of a preset is an option."""

from jaxdeblur.commands.train import main
from jaxdeblur.console import run_command

if __name__ == "__main__":
    run_command(main, "train.py", together=True)
