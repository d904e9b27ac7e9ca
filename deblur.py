#!/usr/bin/env python3
"""Restores a video: ``python deblur.py INPUT OUTPUT``; keeps timing, sound and all else."""

from jaxdeblur.commands.deblur import main
from jaxdeblur.console import run_command

if __name__ == "__main__":
    run_command(main, "deblur.py")
