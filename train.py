#!/usr/bin/env python3
"""Trains a model: ``python train.py --model=strcnn_dtb``. Each field of a preset is an option."""

from jaxdeblur.commands import run
from jaxdeblur.commands.train import main

if __name__ == "__main__":
    run(main, "train.py", together=True)
