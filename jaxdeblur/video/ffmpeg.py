"""FFmpeg, by PyAV: its frames as the arrays of a pixel layout, its tags and errors."""

from __future__ import annotations

import contextlib
import importlib
import math
from fractions import Fraction
from typing import Any

import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Plane
from jaxdeblur.video.picture import FULL_RANGE, LIMITED_RANGE, UNSPECIFIED, Picture, VideoInfo
from jaxdeblur.video.pixels import PixelLayout


class _WhenUsed:
    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(importlib.import_module("av"), name)
        except ModuleNotFoundError as error:
            raise UserError(
                "reading and writing video needs PyAV: pip install 'av>=18,<20'"
            ) from error


av: Any = _WhenUsed()
"""PyAV, imported on first use: a machine that reads no video may lack it."""


def any_tags() -> dict[str, Any]:
    """Returns the options of ``av.open`` for tags in any encoding."""
    # Tags that are not UTF-8 are copied byte for byte. PyAV 19 does so by default and no longer has
    # the option; version 18 raises UnicodeDecodeError without it.
    before_19 = int(av.__version__.partition(".")[0]) < 19
    return {"metadata_errors": "surrogateescape"} if before_19 else {}


# Metadata that describes the old file.
_OF_THE_FILE = {
    *("major_brand", "minor_version", "compatible_brands", "encoder", "duration"),
    # mkvmerge's statistics of each track.
    *("bps", "number_of_frames", "number_of_bytes", "_statistics_tags"),
    *("_statistics_writing_app", "_statistics_writing_date_utc", "alpha_mode"),
}


def of_the_content(metadata: dict[str, str]) -> dict[str, str]:
    """Returns the tags without those that describe the file itself."""
    # MP4's demuxer returns texts twice, the second time with the language at the end of the key.
    twice = {key for key in metadata if key[:-4] in metadata and key[-4:] in ("-eng", "-und")}
    return {
        key: value
        for key, value in metadata.items()
        if key.lower().removesuffix("-eng") not in _OF_THE_FILE and key not in twice
    }


def is_cover(stream: Any) -> bool:
    """Returns whether a track is a picture that players show in place of the video."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def reason(error: Exception) -> str:
    """Returns the message of FFmpeg or the system for an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# Kr and Kb of the colour matrices, by FFmpeg's numbers (H.273, table 4).
_REC_709, _REC_601, _REC_2020 = (0.2126, 0.0722), (0.299, 0.114), (0.2627, 0.0593)
_FCC, _SMPTE_240M = (0.30, 0.11), (0.212, 0.087)
_MATRICES = {
    **{1: _REC_709, 4: _FCC, 5: _REC_601, 6: _REC_601, 7: _SMPTE_240M},
    **{9: _REC_2020, 10: _REC_2020},
}
# What is not luma and chroma by two weights, but another kind of colours.
_OTHER_COLOURS = {
    8: "YCgCo",
    11: "YDzDx",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
# Side data of frames that is not written again, by PyAV's name of its type.
_BESIDE_PIXELS = {
    "MASTERING_DISPLAY_METADATA": "HDR mastering metadata",
    "CONTENT_LIGHT_LEVEL": "HDR mastering metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "ICC_PROFILE": "colour profile",
    "SPHERICAL": "projection of a 360-degree video",
    "A53_CC": "embedded closed captions",
    "STEREO3D": "stereo 3D mark (frame packing)",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
    "S12M_TIMECODE": "time codes of frames",
    "GOP_TIMECODE": "time codes of frames",
    "AFD": "active format description",
    "PANSCAN": "pan and scan",
    "FILM_GRAIN_PARAMS": "film grain parameters",
}
_MANY = 64  # more side data than a frame has
# Encoders whose video has one range, and JPEG also one matrix, whatever the tags say.
_RANGES = {"prores_ks": LIMITED_RANGE, "mjpeg": FULL_RANGE}
_JPEG_MATRIX = 5
# Other sub-samplings (4:1:1, 4:1:0, 4:4:0) become 4:4:4: no encoder of today keeps them.
_SUBSAMPLINGS = {(1, 1): "444", (1, 2): "422", (2, 2): "420"}


def describe(frame: Any, track: Any, *, rate: Fraction, time_base: Fraction) -> VideoInfo:
    """Describes a video; some facts are only in its frames, some only in the container.

    Args:
      frame: the first decoded frame.
      track: PyAV's track that the frame belongs to.
      rate: average frames per second.
      time_base: the unit of timestamps, in seconds.

    Raises:
      ValueError: its colours are not of a kind that is restored.
    """
    pixel_format, layout, has_alpha = pixel_layout(frame)
    context, aspect = track.codec_context, track.sample_aspect_ratio
    # Of PNG, PyAV would free the name of a colour profile twice, and crash.
    beside = {} if context.codec.canonical_name == "png" else _side_data(frame)
    return VideoInfo(
        *(frame.height, frame.width, pixel_format, layout, has_alpha, rate, time_base),
        codec=context.codec.canonical_name,
        sample_aspect=Fraction(aspect) if aspect else None,
        colour=(
            int(frame.color_range or context.color_range or layout.full_range * FULL_RANGE),
            specified(frame.colorspace, context.colorspace),
            specified(frame.color_primaries, context.color_primaries),
            specified(frame.color_trc, context.color_trc),
        ),
        display_matrix=_display_matrix(frame, beside),
        lost=_lost_with(frame, beside)
        + (("alpha (not decoded)",) if _hides_alpha(track, frame) else ()),
    )


def pixel_layout(frame: Any) -> tuple[str, PixelLayout, bool]:
    """Returns the format in which such frames are handed on, its layout, and if it has alpha."""
    given, components = frame.format, frame.format.components
    has_alpha = given.has_palette or any(c.is_alpha for c in components)
    bits = min(max(components[0].bits, 8), 16)
    is_grey = len(components) <= 2 and not given.has_palette
    if given.is_rgb or given.has_palette or (is_grey and has_alpha):
        if bits > 8:
            return "rgba64le" if has_alpha else "rgb48le", PixelLayout("rgb", 16), has_alpha
        return "rgba" if has_alpha else "rgb24", PixelLayout("rgb"), has_alpha
    deep = f"{bits}le" if bits > 8 else ""
    is_full = frame.color_range == FULL_RANGE or given.name.startswith("yuvj")
    if is_grey:
        is_full = is_full or not frame.color_range
        return f"gray{deep}", PixelLayout("grey", bits, full_range=is_full), False
    sized = av.VideoFormat(given.name, 16, 16).components[1]
    chroma = (16 // sized.height, 16 // sized.width)
    chroma = chroma if chroma in _SUBSAMPLINGS else (1, 1)
    if kind := _OTHER_COLOURS.get(int(frame.colorspace)):
        raise ValueError(f"colours of the kind {kind}; convert it to those of BT.709 or BT.2020")
    assumed = _REC_709 if frame.height >= 720 else _REC_601
    weights = _MATRICES.get(int(frame.colorspace), assumed)
    layout = PixelLayout("yuv", bits, chroma, weights, is_full)
    return f"yuv{'a' * has_alpha}{_SUBSAMPLINGS[chroma]}p{deep}", layout, has_alpha


def frame_planes(frame: Any, pixel_format: str) -> tuple[tuple[Plane, ...], Plane | None]:
    """Returns the arrays of a decoded frame, and its alpha."""
    # FFmpeg's yuvj420p is yuv420p with full range, which the layout records.
    if frame.format.name.replace("yuvj", "yuv") != pixel_format:
        frame = frame.reformat(format=pixel_format)
    components = frame.format.components
    has_alpha = any(c.is_alpha for c in components)
    if not frame.format.is_planar and frame.format.is_rgb:
        pixels = frame.to_ndarray()
        alpha = np.ascontiguousarray(pixels[..., 3]) if has_alpha else None
        return (np.ascontiguousarray(pixels[..., :3]),), alpha
    arrays = []
    for plane in frame.planes:
        samples = np.frombuffer(plane, np.uint16 if components[0].bits > 8 else np.uint8)
        arrays.append(np.ascontiguousarray(samples.reshape(plane.height, -1)[:, : plane.width]))
    alpha = arrays.pop() if has_alpha else None
    return tuple(arrays), alpha


def build_frame(picture: Picture, info: VideoInfo) -> Any:
    """Builds a frame for the encoder from a picture's arrays."""
    frame: Any = av.VideoFrame(info.width, info.height, info.pixel_format)
    arrays = list(picture.planes)
    if info.has_alpha:
        assert picture.alpha is not None
        if info.layout.kind == "rgb":
            arrays = [np.dstack([arrays[0], picture.alpha])]
        else:
            arrays.append(picture.alpha)
    for plane, array in zip(frame.planes, arrays, strict=True):
        rows = array.reshape(array.shape[0], -1)
        target = np.frombuffer(plane, array.dtype).reshape(array.shape[0], -1)
        target[:, : rows.shape[1]] = rows
    frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc = info.colour
    return frame


def colours_in(
    pixel_format: Any, encoder: str, info: VideoInfo
) -> tuple[tuple[int, int, int, int], dict[str, int]]:
    """Returns the colour tags of a file, and the colours for a conversion.

    Args:
      pixel_format: PyAV's pixel format of the file.
      encoder: FFmpeg's name of the encoder.
      info: the format of the frames.
    """
    is_rgb, is_jpeg = info.layout.kind == "rgb", encoder == "mjpeg"
    _, matrix, primaries, transfer = info.colour
    given = FULL_RANGE if info.layout.full_range else LIMITED_RANGE
    assumed = 1 if info.height >= 720 else 6  # by players
    if not pixel_format.components[0].is_luma:  # RGB, always of full range
        convert = {"src_color_range": given, "dst_color_range": FULL_RANGE}
        if is_rgb:
            return info.colour, convert
        convert["src_colorspace"] = specified(matrix, assumed)
        return (FULL_RANGE, 0, primaries, transfer), convert
    scale = _RANGES.get(encoder, LIMITED_RANGE if is_rgb else given)
    convert = {"src_color_range": given, "dst_color_range": scale}
    if is_rgb:
        # RGB becomes YUV with the matrix and range that players assume. Known primaries and
        # transfer functions are kept, as for HDR, whose primaries have their own matrix.
        matrix = _JPEG_MATRIX if is_jpeg else 9 if primaries == 9 else assumed
        convert["dst_colorspace"] = matrix
        primaries, transfer = specified(primaries, assumed), specified(transfer, assumed)
    elif is_jpeg:
        convert["src_colorspace"] = specified(matrix, assumed)
        convert["dst_colorspace"] = matrix = _JPEG_MATRIX
    elif scale == given:
        return info.colour, convert
    return (scale, matrix, primaries, transfer), convert


def _display_matrix(frame: Any, beside: dict[str, Any]) -> tuple[int, ...] | None:
    """Returns a frame's rotation and flips (``VideoInfo``); None if there are none."""
    if (side := beside.get("DISPLAYMATRIX")) is not None:
        return tuple(int(x) for x in np.frombuffer(side, np.int32))
    if not frame.rotation:
        return None
    angle = math.radians(frame.rotation)  # the matrix follows unnamed side data
    cosine, sine = round(65536 * math.cos(angle)), round(65536 * math.sin(angle))
    return (cosine, -sine, 0, sine, cosine, 0, 0, 0, 1 << 30)


def _side_data(frame: Any) -> dict[str, Any]:
    """Returns the side data of a frame by PyAV's name of its type."""
    found = {}
    # Indexed up to the last: PyAV 18 and 19 differ in what iteration yields and in the length.
    with contextlib.suppress(IndexError):
        for number in range(_MANY):
            # A type without a name, such as EXIF in version 18, raises ValueError.
            with contextlib.suppress(ValueError):
                side = frame.side_data[number]
                found[side.type.name] = side
    return found


def _lost_with(frame: Any, beside: dict[str, Any]) -> tuple[str, ...]:
    """Returns, in words, what a decoded frame carries that is not written."""
    lost = [_BESIDE_PIXELS[kind] for kind in beside if kind in _BESIDE_PIXELS]
    if frame.interlaced_frame:
        lost.append("interlacing (frames are written as progressive)")
    return tuple(dict.fromkeys(lost))


def _hides_alpha(track: Any, frame: Any) -> bool:
    """Returns whether a track has alpha that FFmpeg's decoder ignores, as of VP8 and VP9."""
    has = any(component.is_alpha for component in frame.format.components)
    return track.metadata.get("alpha_mode") == "1" and not has


def specified(of_frame: int, of_container: int) -> int:
    """Returns the frame's colour property, or the container's if the frame has none."""
    return int(of_container if of_frame == UNSPECIFIED else of_frame)
