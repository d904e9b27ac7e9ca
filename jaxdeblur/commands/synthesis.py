"""``jaxdeblur synthesis``: turns high-speed video into pairs of blurred and sharp frames."""

from __future__ import annotations

from pathlib import Path

from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.synthesis import synthesise
from jaxdeblur.errors import UserError
from jaxdeblur.options import Parser


def main(name: str = "jaxdeblur synthesis") -> None:
    """Reads the options and writes the pairs.

    Raises:
      UserError: T > tau does not hold, or ``synthesise`` refuses the video or the folder.
    """
    parser = Parser(
        prog=name,
        description="Turns high-speed video into pairs of blurred and sharp frames (eq. 1): "
        "every T frames, the mean of tau frames and the frame in the middle of that exposure.",
    )
    parser.add_argument(
        "source", metavar="IN", type=Path, help="a video, a folder of frames, or a folder of either"
    )
    parser.add_argument(
        "target", metavar="OUT", type=Path, help="the new folder: blur/, sharp/ and manifest.json"
    )
    parser.add_argument("--tau", type=int, default=11, help="frames in an exposure")
    parser.add_argument("--period", type=int, help="T, frames between the starts of two (tau + 1)")
    parser.add_argument("--linear", action="store_true", help="average light, not stored values")
    given = parser.parse_args()
    period = given.tau + 1 if given.period is None else given.period
    exposure = Exposure(given.tau, period, given.linear)
    if period <= given.tau:
        raise UserError(f"period must be above tau, {given.tau}, not {period} (eq. 1 has T > tau)")
    print(synthesise(given.source, given.target, exposure))
