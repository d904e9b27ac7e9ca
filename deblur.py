#!/usr/bin/env python3
"""Restores a video: ``python deblur.py INPUT OUTPUT``; keeps timing, sound and all else."""

from jaxdeblur.commands import run
from jaxdeblur.commands.deblur import main

if __name__ == "__main__":
    run(main, "deblur.py")
