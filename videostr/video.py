"""Clip -> selected frames with times. Each video is decoded once, into a frame store that every process reads.

In: a `ClipSpec` (video file or list of images, interval, number of frames, size). Out: a `Clip` (a name, no pixels) and, where
a worker needs them, `ClipFrames` memory-mapped from the store, so that rollout and learner share pages and nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np

from videostr.digests import json_digest
from videostr.errors import VideoError
from videostr.files import make_folder, storage
from videostr.images import LIST_SUFFIX, check_regular, image_size, read_image, read_list
from videostr.mark_drawing import DRAWING, draw_marks
from videostr.media import Video
from videostr.truncation import unreadable
from videostr.types import Clip, ClipSpec, Mark

log = logging.getLogger("videostr.video")
DECODING = 2
"""Raised when other frames or pixels are read for the same clip: frames stored before are then not used."""
METADATA = 3
"""Raised when `ClipFrames.metadata` tells the model something else of the same frames: answers kept before are then void."""
PIXELS = "pixels.npy"
LARGE_CLIP_BYTES = 64e6
"""Clips that take more decoded memory than this are warned of: 16 frames of 1280 x 720 take 44 MB."""
NUMBERING_ERROR_S = 0.02
"""Largest error of a time that is stated as the number of a frame; in milliseconds where the frame rate varies more."""
MILLISECONDS = 1000.0


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
    """Rate that `indices` count in: the average frame rate, or 1000 where frames come unevenly."""
    total_frames: int
    """Frames in the video at that rate."""
    damaged: int = 0
    """Packets that could not be decoded on the way to these."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Video metadata under the names that transformers and vLLM share.

        One clock holds for prompt, graph and metadata, that of the whole video: `frames_indices / fps` are the times of the
        frames, which the processors of some models write into the prompt. Others have temporal positions that start at 0 for
        any clip, and whose scale learner and engine take from `len(frames_indices) / total_num_frames * fps`. So the total is
        that of the part that is shown; it may be less than an index.
        """
        count = self.indices[-1] - self.indices[0] + 1
        return {
            "fps": self.fps,
            "duration": count / self.fps,
            "total_num_frames": count,
            "frames_indices": list(self.indices),
            "video_backend": "pyav",
            "do_sample_frames": False,
        }

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the frames; they can be used all the same."""
        found = []
        if len(self.times) > 1 and len(set(self.times)) == 1:
            found.append(
                f"all {len(self.times)} selected frames are the same frame of the file, that at {self.times[0]:.2f} s; "
                "correct the interval or drop the rows"
            )
        if self.damaged:
            found.append(
                f"{self.damaged} damaged packets cannot be decoded: the frames before them are shown longer; restore the file"
            )
        return found


def name_clip(spec: ClipSpec, root: Path) -> Clip:
    """Name a clip without opening the video; `root` is the dataset's folder.

    The digest covers path, size and modification time of the file, the sampling parameters and `DECODING`; with marks also
    these and `DRAWING`.

    Raises:
        VideoError: the file is missing, or is not a video.
    """
    path = root / spec.video
    try:
        path = path.resolve()
        stat = path.stat()
    except (OSError, RuntimeError) as error:  # the latter is of links that lead in a circle
        reason = error.strerror if isinstance(error, OSError) else error
        raise VideoError(
            f"{path}: video cannot be read ({reason})", remedy="restore it or drop its rows"
        ) from None
    check_regular(path)
    absolute = replace(spec, video=str(path))
    sampling = asdict(absolute)
    marks = sampling.pop("marks")
    digest = json_digest([DECODING, stat.st_size, stat.st_mtime_ns, sampling])[:32]
    if marks:
        digest = json_digest([DRAWING, digest, marks])[:32]
    return Clip(digest=digest, spec=absolute)


def reordered(clip: Clip, order: Sequence[int]) -> Clip:
    """Return a clip that shows pictures of `clip` in this order, at the times that these have, ascending.

    Args:
        clip: with all its frames, in order of time.
        order: places among its frames; one may stand there several times, others may be left out.
    """
    digest = json_digest([clip.digest, list(order)])[:32]
    return replace(clip, digest=digest, order=tuple(order))


_PARSING = threading.Lock()
"""NumPy reads the head of a file with Python's parser, which fails where two threads parse at once (CPython issue 106905)."""


_DIGEST = re.compile(r"[0-9a-zA-Z_-]+")
"""Of an entry of the store: a file in it, and not one elsewhere."""


class FrameStore:
    """A folder with one `.npy` of pixels and one `.json` of times per clip; safe for many processes at once.

    A clip with marks shares the pixels of the clip without them: its `.json` names that one, and the marks are drawn whenever
    its frames are read. A clip in another order shares those of the clip in order of time.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        make_folder(self.folder)

    def frames(self, clip: Clip) -> ClipFrames:
        """Return the frames of a clip, decoded when no process did so before; what is remarkable about them is then logged.

        Raises:
            VideoError: the video is missing, truncated or cannot be decoded.
            StorageError: the frames cannot be written.
        """
        shares = bool(clip.order or clip.spec.marks)
        if not (self.folder / f"{clip.digest}.{'json' if shares else 'npy'}").exists():
            if shares:
                added: dict[str, Any] = {"order": clip.order}
                spec = clip.spec
                if not clip.order:
                    added = {"marks": msgspec.to_builtins(spec.marks)}
                    spec = replace(spec, marks=())
                plain = name_clip(spec, Path())
                self.frames(plain)
                self._store(clip.digest, {"frames": plain.digest, **added})
            else:
                self._decode(clip)
        return self.stored(clip.digest)

    def _decode(self, clip: Clip) -> None:
        """Decode the frames of a clip into a file of the store: this process holds one frame at a time."""
        with self._scratch(clip.digest) as scratch:
            frames = decode(clip.spec, partial(_mapped, scratch / PIXELS))
            for remark in frames.remarks:
                log.warning("%s: %s", clip.spec.video, remark)
            about = asdict(replace(frames, pixels=np.empty(0)))
            del about["pixels"]
            self._store(clip.digest, about, scratch / PIXELS)

    def stored(self, digest: str) -> ClipFrames:
        """Return the frames of a clip that was read before.

        Raises:
            OSError: the store does not have them.
            ValueError, KeyError, TypeError: a file of the store is not as it was written.
            VideoError: a mark belongs to none of the frames.
        """
        frames, marks = self.stored_apart(digest)
        return _marked(frames, marks, digest)

    def stored_apart(self, digest: str) -> tuple[ClipFrames, tuple[Mark, ...]]:
        """Return the frames of a clip without its marks, and these; raises as `stored` does.

        Those of a clip in another order are drawn already: they belong to times.
        """
        about = self._about(digest)
        if "frames" not in about:
            return self._plain(digest, about), ()
        plain = str(about["frames"])
        if not _DIGEST.fullmatch(plain):
            raise ValueError(f"{digest}: frames = {plain!r:.80}: must be the name of an entry of the store")
        if "order" in about:
            return _in_order(self.stored(plain), about["order"]), ()
        return self._plain(plain, self._about(plain)), msgspec.convert(about["marks"], tuple[Mark, ...])

    def _about(self, digest: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{digest}.json").read_text(encoding="utf-8")))

    def _plain(self, digest: str, about: dict[str, Any]) -> ClipFrames:
        about |= {"times": tuple(map(float, about["times"])), "indices": tuple(about["indices"])}
        with _PARSING:
            return ClipFrames(pixels=np.load(self.folder / f"{digest}.npy", mmap_mode="r"), **about)

    def _store(self, digest: str, about: Mapping[str, Any], pixels: Path | None = None) -> None:
        """Write an entry, of which `pixels` is moved; others may write the same one meanwhile."""
        with self._scratch(digest) as scratch, storage(self.folder):
            (scratch / "about.json").write_text(json.dumps(about), encoding="utf-8")
            (scratch / "about.json").replace(self.folder / f"{digest}.json")
            if pixels is not None:  # they come last: their presence says that the entry is complete
                pixels.replace(self.folder / f"{digest}.npy")

    @contextlib.contextmanager
    def _scratch(self, digest: str) -> Iterator[Path]:
        with storage(self.folder):
            scratch = tempfile.TemporaryDirectory(dir=self.folder, prefix=f".{digest}-")
        with scratch:
            yield Path(scratch.name)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array that is a new file."""
    with storage(path.parent):
        pixels: np.ndarray = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call]
        with path.open("r+b") as file:  # a full disk is an error here, and a signal where a page is written
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return pixels


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


def _in_order(frames: ClipFrames, order: Sequence[int]) -> ClipFrames:
    places = sorted(order)
    return replace(
        frames,
        pixels=frames.pixels[list(order)],
        times=tuple(frames.times[i] for i in places),
        indices=tuple(frames.indices[i] for i in places),
    )


def _marked(frames: ClipFrames, marks: Sequence[Mark], name: str) -> ClipFrames:
    return replace(frames, pixels=draw_marks(frames.pixels, frames.times, marks, name)) if marks else frames


def decode(spec: ClipSpec, empty: Callable[[tuple[int, ...]], np.ndarray] = _in_memory) -> ClipFrames:
    """Decode the F frames on screen at F equally spaced times of the interval, which is cut at the video's last frame.

    Its marks are drawn into them. Parts of a video between times are left out by seeking where a keyframe lies.

    Args:
        spec: what to decode.
        empty: returns an array of a shape, uint8, for the pixels.

    Raises:
        VideoError: missing, without a video stream, truncated, not decodable, or ended before the interval; or a list of
            images that names one that cannot be read; or a mark belongs to none of the frames.
    """
    if spec.start_s < 0:
        raise VideoError(
            f"{spec.video}: clip.start_s = {spec.start_s:g}: must be 0 or more, seconds from the start of the video",
            remedy="correct the row",
        )
    if spec.video.endswith(LIST_SUFFIX):
        frames = _select_images(Path(spec.video), spec, empty)
    else:
        with _opened(Path(spec.video)) as video:
            frames = _select(video, spec, empty)
    return _marked(frames, spec.marks, spec.video)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoShape:
    """What a video is."""

    seconds: float
    """Time of the last frame."""
    width: int
    """Pixels, as it is shown: after the turn that the file asks for."""
    height: int
    """Pixels."""


def probe(path: Path) -> VideoShape:
    """Return the length and size of a video, of which one frame is decoded; raises `VideoError` as `decode` does."""
    if path.name.endswith(LIST_SUFFIX):
        listed = read_list(path)
        width, height = image_size(path.parent / listed.root / listed.frames[0][1])
        return VideoShape(seconds=listed.frames[-1][0], width=width, height=height)
    with _opened(path) as video:
        seconds, _ = video.last_and_end
        if video.is_truncated:
            raise unreadable(path, f"its frames end at {seconds:.2f} s")
        ((_, frame),) = video.frames_at([0.0])
        height, width, _ = video.to_rgb(frame, None, None).shape
        return VideoShape(seconds=seconds, width=width, height=height)


def target_times(start_s: float, end_s: float, count: int) -> np.ndarray:
    """Return [F] equally spaced times, first and last of the interval included."""
    return np.linspace(start_s, end_s, count)


def _select_images(path: Path, spec: ClipSpec, empty: Callable[[tuple[int, ...]], np.ndarray]) -> ClipFrames:
    listed = read_list(path)
    all_times = np.array([t for t, _ in listed.frames])
    last = float(all_times[-1])
    _check_start(spec, last + 1 / listed.fps)
    end = last if spec.end_s is None else min(spec.end_s, last)
    targets = target_times(spec.start_s, max(spec.start_s, end), spec.num_frames)
    chosen = [int(np.abs(all_times - target).argmin()) for target in targets]
    files = [path.parent / listed.root / listed.frames[i][1] for i in chosen]
    pixels: np.ndarray | None = None
    for place, file in enumerate(files):
        if place and file == files[place - 1] and pixels is not None:
            pixels[place] = pixels[place - 1]
            continue
        image = read_image(file, spec.height, spec.width)
        if pixels is None:
            pixels = empty((len(files), *image.shape))
        if image.shape != pixels.shape[1:]:
            raise VideoError(
                f"{path}: its images differ in size", remedy="resize them, or set height and width"
            )
        pixels[place] = image
    assert pixels is not None
    times = tuple(float(all_times[i]) for i in chosen)
    rate = _counting_rate(times, listed.fps)
    return ClipFrames(
        pixels=pixels,
        times=times,
        indices=tuple(round(t * rate) for t in times),
        fps=rate,
        total_frames=round(last * rate) + 1,
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Video]:
    check_regular(path)
    try:
        # Absolute: a relative "a:b.mp4" would be a file of the protocol "a".
        with contextlib.closing(Video(str(path.absolute()))) as video:
            yield video
    except (av.FFmpegError, OSError) as error:
        raise unreadable(path, error) from error


def _select(video: Video, spec: ClipSpec, empty: Callable[[tuple[int, ...]], np.ndarray]) -> ClipFrames:
    pixels: np.ndarray | None = None
    times: list[float] = []
    for place, (t, frame) in enumerate(video.frames_at(_targets(video, spec).tolist())):
        if pixels is None:
            first = video.to_rgb(frame, spec.height, spec.width)
            pixels = empty((spec.num_frames, *first.shape))
            pixels[0] = first
        elif t == times[-1]:
            pixels[place] = pixels[place - 1]
        else:  # in the size of the first one: it may change within a file
            pixels[place] = video.to_rgb(frame, *pixels.shape[1:3])
        times.append(t)
    assert pixels is not None
    rate = _counting_rate(times, video.rate)
    return ClipFrames(
        pixels=pixels,
        times=tuple(times),
        indices=tuple(round(t * rate) for t in times),
        fps=rate,
        total_frames=round(video.last_and_end[0] * rate) + 1,
        damaged=video.damaged,
    )


def _counting_rate(times: Sequence[float], rate: float) -> float:
    """Return the rate at which the times of frames can be told as numbers of frames: that of the video, else milliseconds."""
    is_counted = all(abs(round(t * rate) / rate - t) <= NUMBERING_ERROR_S for t in times)
    return rate if is_counted else MILLISECONDS


def _targets(video: Video, spec: ClipSpec) -> np.ndarray:
    """Return [F] times in the video at which frames are wanted."""
    last, end = video.last_and_end
    if (spec.end_s is None or spec.end_s > end) and video.is_truncated:
        raise unreadable(Path(spec.video), f"its frames end at {end:.2f} s")
    _check_start(spec, end)
    # The last frame stands for the end, unless it stays for long.
    latest = end if end - last > 1.5 / video.rate else last
    stop = last if spec.end_s is None else min(spec.end_s, latest)
    return target_times(spec.start_s, max(spec.start_s, stop), spec.num_frames)


def _check_start(spec: ClipSpec, end: float) -> None:
    if spec.start_s > end:
        raise VideoError(
            f"{spec.video}: clip.start_s = {spec.start_s:g}: the video ends at {end:.2f} s",
            remedy="correct the row or drop it",
        )
