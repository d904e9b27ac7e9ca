"""``jaxdeblur path-clips``: draws the clips that train a network over blur paths."""

from __future__ import annotations

from pathlib import Path

from jaxdeblur import devices
from jaxdeblur.options import Parser, add_fields, read_fields
from jaxdeblur.training.path_clips import PathClipsConfig, draw_clips


def main(name: str = "jaxdeblur path-clips") -> None:
    """Reads the options and fills the folder."""
    parser = Parser(
        prog=name,
        description="Draws the clips that train a network over blur paths, with the path maps of "
        "each frame, for train.py --data=paths:FOLDER. Started again, it goes on where it stopped.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder for the clips")
    add_fields(parser, PathClipsConfig(), "clips")
    arguments = parser.parse_args()
    config = read_fields(arguments, PathClipsConfig())
    devices.keep_freed_memory()
    devices.keep_compiled()
    draw_clips(arguments.folder, config)
