"""Clip -> selected frames with times. Each video is decoded once, into a frame store that every process reads.

In: a `ClipSpec` (video file or list of images, interval, number of frames, size). Out: a `Clip` (a name, no pixels) and, where
a worker needs them, `ClipFrames` memory-mapped from the store, so that rollout and learner share pages and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
from PIL import Image

from videostr.errors import VideoError
from videostr.json_files import json_content
from videostr.types import Clip, ClipSpec

LIST_SUFFIX = ".frames.json"
METADATA = 2
"""Raised when `ClipFrames.metadata` tells the model something else of the same frames: answers kept before are then void."""
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged: SyntaxError and ValueError on bad chunks of a PNG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """The frames of a clip."""

    pixels: np.ndarray
    """[F, H, W, 3] uint8 RGB, read-only."""
    times: tuple[float, ...]
    """[F] seconds from the start of the video."""
    indices: tuple[int, ...]
    """[F] frame numbers in the video."""
    fps: float
    """Frame rate of the video, frames per second."""
    total_frames: int
    """Frames in the video."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Video metadata under the names that transformers and vLLM share.

        Both take `len(frames_indices) / total_num_frames * fps` for the rate of the frames shown, which sets the temporal
        positions of M-RoPE. So a part of a video is given as a video of its own, as in Qwen's own `qwen_vl_utils`.
        """
        first, count = self.indices[0], self.indices[-1] - self.indices[0] + 1
        return {
            "fps": self.fps,
            "duration": count / self.fps,
            "total_num_frames": count,
            "frames_indices": [index - first for index in self.indices],
            "video_backend": "pyav",
            "do_sample_frames": False,
        }


def name_clip(spec: ClipSpec, root: Path) -> Clip:
    """Name a clip without opening the video; `root` is the dataset's folder.

    The digest covers path, size and modification time of the file and the sampling parameters.

    Raises:
        VideoError: the file is missing.
    """
    path = (root / spec.video).resolve()
    try:
        stat = path.stat()
    except OSError as error:
        raise VideoError(
            f"{path}: video cannot be read ({error.strerror}); restore it or drop its rows"
        ) from None
    absolute = replace(spec, video=str(path))
    identity = [stat.st_size, stat.st_mtime_ns, asdict(absolute)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return Clip(digest=digest, spec=absolute)


class FrameStore:
    """A folder with one `.npy` of pixels and one `.json` of times per clip; safe for many processes at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def frames(self, clip: Clip) -> ClipFrames:
        """The frames of a clip, decoded when no process did so before.

        Raises:
            VideoError: the video is missing, truncated or cannot be decoded.
        """
        pixels = self.folder / f"{clip.digest}.npy"
        if not pixels.exists():
            self._store(clip.digest, decode(clip.spec))
        about = json.loads(pixels.with_suffix(".json").read_text())
        about |= {"times": tuple(about["times"]), "indices": tuple(about["indices"])}
        return ClipFrames(pixels=np.load(pixels, mmap_mode="r"), **about)

    def _store(self, digest: str, frames: ClipFrames) -> None:
        about = asdict(replace(frames, pixels=np.empty(0)))
        del about["pixels"]
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f".{digest}-") as scratch:
            temporary = Path(scratch)
            (temporary / "about.json").write_text(json.dumps(about))
            np.save(temporary / "pixels.npy", frames.pixels)
            # The pixels come last: their presence says that the entry is complete.
            (temporary / "about.json").replace(self.folder / f"{digest}.json")
            (temporary / "pixels.npy").replace(self.folder / f"{digest}.npy")


def decode(spec: ClipSpec) -> ClipFrames:
    """Decode the F frames nearest to F equally spaced times of the interval.

    Raises:
        VideoError: missing, without a video stream, truncated, or shorter than the interval; or a list of images that names
            one that cannot be read.
    """
    if spec.video.endswith(LIST_SUFFIX):
        return _select_images(Path(spec.video), spec)
    try:
        with av.open(spec.video) as container:
            return _select(container, spec)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{spec.video}: cannot be decoded ({error}); re-encode the file or drop its rows"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoShape:
    """What a video is, from its header."""

    seconds: float
    """Time of the last frame."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


def probe(path: Path) -> VideoShape:
    """Length and size of a video, without decoding it; raises `VideoError` as `decode` does."""
    if path.name.endswith(LIST_SUFFIX):
        listed = _read_list(path)
        first = path.parent / listed.root / listed.frames[0][1]
        try:
            with Image.open(first) as image:
                return VideoShape(seconds=listed.frames[-1][0], width=image.width, height=image.height)
        except BROKEN_IMAGE as error:
            raise _unreadable(first, error) from None
    try:
        with av.open(str(path)) as container:
            stream, fps, total = _stream(container, str(path))
            return VideoShape(seconds=(total - 1) / fps, width=stream.width, height=stream.height)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be opened ({error}); restore the file or drop its rows") from error


def target_times(start_s: float, end_s: float, count: int) -> np.ndarray:
    """[F] equally spaced times, first and last of the interval included."""
    return np.linspace(start_s, end_s, count)


class ImageList(msgspec.Struct, frozen=True):
    """A video whose frames are image files, as `*.frames.json`."""

    root: str
    """Folder that the paths are relative to; itself absolute, or relative to the list's folder."""
    fps: float
    """Rate that frame numbers are counted in, frames per second."""
    frames: tuple[tuple[float, str], ...]
    """Time in seconds from the start of the video and path of every image, ascending in time."""


def _select_images(path: Path, spec: ClipSpec) -> ClipFrames:
    listed = _read_list(path)
    all_times = np.array([t for t, _ in listed.frames])
    end = all_times[-1] if spec.end_s is None else min(spec.end_s, all_times[-1])
    targets = target_times(spec.start_s, float(end), spec.num_frames)
    chosen = [int(np.abs(all_times - target).argmin()) for target in targets]
    pixels = [_read_image(path.parent / listed.root / listed.frames[i][1], spec) for i in chosen]
    if len({image.shape for image in pixels}) > 1:
        raise VideoError(f"{path}: its images differ in size; resize them, or set height and width")
    times = tuple(float(all_times[i]) for i in chosen)
    return ClipFrames(
        pixels=np.stack(pixels),
        times=times,
        indices=tuple(round(t * listed.fps) for t in times),
        fps=listed.fps,
        total_frames=round(float(all_times[-1]) * listed.fps) + 1,
    )


def _read_list(path: Path) -> ImageList:
    try:
        listed = msgspec.json.decode(json_content(path.read_bytes()), type=ImageList)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise VideoError(f"{path}: is no list of images ({error}); build the dataset again") from None
    if not listed.frames:
        raise VideoError(f"{path}: lists no image; drop its rows")
    return listed


def _read_image(path: Path, spec: ClipSpec) -> np.ndarray:
    try:
        with Image.open(path) as image:
            size = (spec.width or image.width, spec.height or image.height)
            converted = image.convert("RGB")
            return np.asarray(
                converted if size == image.size else converted.resize(size, Image.Resampling.BICUBIC)
            )
    except BROKEN_IMAGE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> VideoError:
    return VideoError(f"{path}: image cannot be read ({error}); restore it or drop its rows")


def _select(container: av.container.InputContainer, spec: ClipSpec) -> ClipFrames:
    stream, fps, total = _stream(container, spec.video)
    # The store is filled by several processes at once; starting threads in each costs more than it saves.
    stream.codec_context.thread_count = 1
    last = (total - 1) / fps
    end = last if spec.end_s is None else min(spec.end_s, last)
    targets = target_times(spec.start_s, end, spec.num_frames)
    if spec.start_s > 0:
        container.seek(int(spec.start_s / (stream.time_base or 1)), stream=stream)
    nearest = _nearest(container, stream, targets, fps)
    far = [t for i, t in enumerate(targets) if i not in nearest or nearest[i][0] > 1 / fps]
    if far:
        raise VideoError(
            f"{spec.video}: truncated: states {total} frames, but has none near {far[0]:.2f} s; "
            "restore the file or drop its rows"
        )
    chosen = [nearest[i] for i in range(spec.num_frames)]
    pixels = [
        frame.to_ndarray(format="rgb24", height=spec.height, width=spec.width) for _, _, frame in chosen
    ]
    times = tuple(t for _, t, _ in chosen)
    return ClipFrames(
        pixels=np.stack(pixels),
        times=times,
        indices=tuple(round(t * fps) for t in times),
        fps=fps,
        total_frames=total,
    )


def _stream(container: av.container.InputContainer, video: str) -> tuple[av.VideoStream, float, int]:
    """The video stream, its frames per second, its number of frames."""
    if not container.streams.video:
        raise VideoError(f"{video}: has no video stream; re-encode the file or drop its rows")
    stream = container.streams.video[0]
    if stream.average_rate is None or stream.time_base is None:
        raise VideoError(f"{video}: states no frame rate; re-encode it, e.g. ffmpeg -i IN -r 30 OUT.mp4")
    fps = float(stream.average_rate)
    return stream, fps, stream.frames or round(float((stream.duration or 0) * stream.time_base) * fps)


def _nearest(
    container: av.container.InputContainer, stream: av.VideoStream, targets: np.ndarray, fps: float
) -> dict[int, tuple[float, float, av.VideoFrame]]:
    """For every target, by its place, the frame nearest to it, as (distance, time, frame)."""
    nearest: dict[int, tuple[float, float, av.VideoFrame]] = {}
    origin = (stream.start_time or 0) * float(stream.time_base or 0)
    for frame in container.decode(stream):
        t = float(frame.time or 0.0) - origin
        if t > targets[-1] + 1 / fps:
            break
        for i, target in enumerate(targets):
            distance = abs(t - float(target))
            if i not in nearest or distance < nearest[i][0]:
                nearest[i] = (distance, t, frame)
    return nearest
