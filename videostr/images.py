"""Images as frames: lists of image files that are a video to this project, each image upright and in RGB.

In: a `*.frames.json`. Out: an `ImageList` that keeps its rules, and the images, as viewers show them: turned as their EXIF says,
16 bits a channel brought to 8, and transparency left out as ffmpeg does.
"""

from __future__ import annotations

import stat
import struct
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageOps

from videostr.errors import VideoError
from videostr.json_files import json_content

LIST_SUFFIX = ".frames.json"
ORIENTATION = 0x0112
"""EXIF tag; 1 is upright, from 5 on rows and columns are exchanged."""
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged: SyntaxError and ValueError on bad chunks of a PNG."""


class ImageList(msgspec.Struct, frozen=True):
    """A video whose frames are image files, as `*.frames.json`."""

    root: str
    """Folder that the paths are relative to; itself absolute, or relative to the list's folder."""
    fps: float
    """Rate that frame numbers are counted in, frames per second."""
    frames: tuple[tuple[float, str], ...]
    """Time in seconds from the start of the video and path of every image, ascending in time."""


def check_regular(path: Path) -> None:
    """Refuse what is there but is not a file: reading from a pipe would wait forever.

    Raises:
        VideoError: names the path.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it says why
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise VideoError(f"{path}: is {kind}, must be a file", remedy="correct the row or drop it")


def read_list(path: Path) -> ImageList:
    """Read a list of images.

    Raises:
        VideoError: the file is not one, or breaks its rules.
    """
    check_regular(path)
    try:
        listed = msgspec.json.decode(json_content(path.read_bytes()), type=ImageList)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise VideoError(
            f"{path}: is not a list of images ({error})", remedy="build the dataset again"
        ) from None
    if not listed.frames:
        raise VideoError(f"{path}: lists no image", remedy="drop its rows")
    if listed.fps <= 0:
        raise VideoError(f"{path}: fps = {listed.fps:g}: must be above 0", remedy="correct the list")
    times = [t for t, _ in listed.frames]
    if times[0] < 0 or any(after <= before for before, after in pairwise(times)):
        raise VideoError(
            f"{path}: frames: their times must be 0 or more, and ascend", remedy="correct the list"
        )
    return listed


def read_image(path: Path, height: int | None, width: int | None) -> np.ndarray:
    """Return [H, W, 3] uint8 of an image, resized where a height or a width is given.

    Raises:
        VideoError: the file is missing, damaged or of a depth whose range is not known.
    """
    check_regular(path)
    try:
        with Image.open(path) as image:
            image.load()  # first: a damaged image that `_orientation` loads would seem whole
            converted = _to_rgb(image if _orientation(image) == 1 else ImageOps.exif_transpose(image))
    except BROKEN_IMAGE as error:
        raise _unreadable(path, error) from None
    size = (width or converted.width, height or converted.height)
    return np.asarray(
        converted if size == converted.size else converted.resize(size, Image.Resampling.BICUBIC)
    )


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image as it is shown, without decoding it; raises `VideoError` as `read_image` does."""
    check_regular(path)
    try:
        with Image.open(path) as image:
            return image.size if _orientation(image) < 5 else image.size[::-1]
    except BROKEN_IMAGE as error:
        raise _unreadable(path, error) from None


def _orientation(image: Image.Image) -> int:
    """Return how the image is to be turned, 1 to 8; 1 where its EXIF cannot be read or says something else, as in viewers."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (*BROKEN_IMAGE, struct.error, KeyError, TypeError):
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    # 16 bits, which Pillow would cut at 255.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its brightness has 32 bits and no known range (mode {image.mode}); save it with 8 or 16"
        )
    return image.convert("RGB")


def _unreadable(path: Path, error: Exception) -> VideoError:
    return VideoError(f"{path}: image cannot be read ({error})", remedy="restore it or drop its rows")
