"""Marked clips as files of their own, for trainers that do not draw marks.

In: a record with marks. Out: an MP4 file or a folder of PNG files with the frames of its clip, marks drawn in, and the line that
tells their times: such a file begins at 0 s, the question counts from the beginning of the whole video.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from videostr.files import make_folder, replacing, storage
from videostr.types import Record
from videostr.video import ClipFrames, decode, name_clip

Form = Literal["videos", "frames"]
CRF = "12"
"""Of H.264: a digit of 9 px stays legible."""


def write_marked(record: Record, root: Path, folder: Path, form: Form) -> tuple[Path, list[Path], str]:
    """Write the frames of a marked record, unless they are there; return file or folder, its images, and the line of times.

    Args:
        record: with marks.
        root: folder of the dataset.
        folder: to write to; records that show the same frames with the same marks share a file.
        form: "videos" for `DIGEST.mp4`, "frames" for `DIGEST/00.png` and so on.

    Raises:
        VideoError: the clip cannot be read.
        StorageError: the file cannot be written.
    """
    clip = name_clip(record.clip, root)
    frames = decode(clip.spec)
    times = ", ".join(f"{t:g}" for t in frames.times)
    line = f"The frames of the video are from {times} s.\n"
    make_folder(folder)
    if form == "videos":
        path = folder / f"{clip.digest}.mp4"
        if not path.exists():
            _write_video(frames, path)
        return path, [], line
    images = [folder / clip.digest / f"{number:02d}.png" for number in range(len(frames.times))]
    make_folder(folder / clip.digest)
    with storage(folder):
        for pixels, image in zip(frames.pixels, images, strict=True):
            if not image.exists():
                Image.fromarray(pixels).save(image)
    return folder / clip.digest, images, line


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
