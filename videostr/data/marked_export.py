"""Marked clips as files of their own, for trainers that do not draw marks.

In: a clip with marks. Out: an MP4 file or a folder of PNG files with its frames, marks drawn in, and the line that tells their
times: such a file begins at 0 s, the question counts from the beginning of the whole video.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from videostr.files import make_folder, replacing, storage
from videostr.types import Clip
from videostr.video import ClipFrames, decode

Form = Literal["videos", "frames"]
CRF = "12"
"""Of H.264: a digit of 9 px stays legible."""


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
            _write_video(frames, path)
        return Written(path=path, images=(), line=line)
    folder = marked.folder / digest
    images = tuple(folder / f"{number:02d}.png" for number in range(len(frames.times)))
    make_folder(folder)
    with storage(folder):
        for pixels, image in zip(frames.pixels, images, strict=True):
            if not image.exists():
                Image.fromarray(pixels).save(image)
    return Written(path=folder, images=images, line=line)


def _write_video(frames: ClipFrames, path: Path) -> None:
    """Write an H.264 file, a frame at each time; sides that are odd, which its colours do not allow, get a line more."""
    height, width = frames.pixels.shape[1:3]
    pixels = np.pad(frames.pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    steps = max(1, len(frames.times) - 1)
    spacing = (frames.times[-1] - frames.times[0]) / steps or 1.0
    with replacing(path) as scratch, av.open(str(scratch), "w", format="mp4") as container:
        rate = Fraction(1 / spacing).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": CRF, "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
