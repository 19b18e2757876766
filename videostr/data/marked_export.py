"""Marked clips as files of their own, for trainers that do not draw marks.

In: a clip with marks. Out: an MP4 file or a folder of PNG files with its frames, marks drawn in, and the line that tells their
times: such a file begins at 0 s, the question counts from the beginning of the whole video.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from videostr.files import make_folder, replacing, storage
from videostr.types import Clip
from videostr.video import decode

Form = Literal["videos", "frames"]
LEGIBLE = ("libx264", "yuv420p", {"crf": "12", "preset": "veryfast"})
"""Encoder, its pixels and options; a digit of 9 px stays legible."""
LOSSLESS = ("libx264rgb", "rgb24", {"qp": "0", "preset": "veryfast"})
"""The same; decoders that give RGB give the very pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A clip that is to be written."""

    clip: Clip
    folder: Path
    """That exists."""
    form: Form
    """"videos" for `DIGEST.mp4` in the folder, "frames" for `DIGEST/00.png` and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written of a clip."""

    path: Path
    """Of the video, or the folder of the images."""
    images: tuple[Path, ...]
    """In order; none of a video."""
    line: str
    """Tells the times of the frames."""


def write_marked(marked: Marked) -> Written:
    """Write the frames of a clip, unless they are there.

    Raises:
        VideoError: the clip cannot be read.
        StorageError: the file cannot be written.
    """
    frames, digest = decode(marked.clip.spec), marked.clip.digest
    times = ", ".join(f"{t:g}" for t in frames.times)
    line = f"The frames of the video are from {times} s.\n"
    if marked.form == "videos":
        path = marked.folder / f"{digest}.mp4"
        if not path.exists():
            steps = max(1, len(frames.times) - 1)
            spacing = (frames.times[-1] - frames.times[0]) / steps or 1.0
            rate = Fraction(1 / spacing).limit_denominator(1000)
            write_video(frames.pixels, range(len(frames.times)), rate, path, LEGIBLE)
        return Written(path=path, images=(), line=line)
    folder = marked.folder / digest
    images = tuple(folder / f"{number:02d}.png" for number in range(len(frames.times)))
    make_folder(folder)
    with storage(folder):
        for pixels, image in zip(frames.pixels, images, strict=True):
            if not image.exists():
                Image.fromarray(pixels).save(image)
    return Written(path=folder, images=images, line=line)


def write_video(
    pixels: np.ndarray,
    order: Iterable[int],
    rate: Fraction,
    path: Path,
    encoding: tuple[str, str, dict[str, str]],
) -> None:
    """Write an H.264 file of frames [F, H, W, 3], in the order of their places in it.

    Odd sides, which colours at half the size do not allow, get a line more.
    """
    encoder, colours, options = encoding
    if colours == "yuv420p":
        odd = [(0, side % 2) for side in pixels.shape[1:3]]
        pixels = np.pad(pixels, ((0, 0), *odd, (0, 0)), mode="edge")
    with replacing(path) as scratch, av.open(str(scratch), "w", format="mp4") as container:
        stream = cast("VideoStream", container.add_stream(encoder, rate=rate, options=options))
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], colours
        for place in order:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels[place], format="rgb24")))
        container.mux(stream.encode())
