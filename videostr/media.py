"""One video file as ffmpeg plays it: which frame is on screen when, upright and in RGB.

In: a path and ascending times. Out: the frames on screen at these times. Times are seconds from the first frame of the video
stream, and they alone decide: counts of frames in headers include frames that an edit list hides, and rates are averages.

As in ffmpeg, damaged packets are skipped, interlaced frames stay interlaced, and pixels that are not square stay as they are;
where the clock of a transport or program stream jumps, as in joined recordings, the next frame follows the one before.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition

from videostr.errors import VideoError
from videostr.truncation import is_cut_off, unreadable

ROUNDING_S = 0.005
"""Times in annotations have two or three decimals: a frame that starts so soon after one is meant."""
LONGEST_INTERVAL_S = 1.0
"""Frames farther apart than this and a half are pictures that stay on screen, not samples of a motion."""
JUMP_BACK_S, JUMP_AHEAD_S = 0.1, 10.0
"""Jumps of a format's clock beyond these are not time that passes, as ffmpeg has it."""
SKIPPED_S = 1.0
"""A keyframe is sought if it lies so long after the last frame wanted: what lies between is not decoded."""
TAIL_S = (1.0, 10.0, 60.0)
"""How far before its stated end a file is searched for its last frame; reading starts at a keyframe there."""


class Video:
    """An opened video file; close it after use (`contextlib.closing`)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.damaged = 0
        """Packets so far that could not be decoded."""
        self._open()
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate or 25
        self._may_jump = bool(self._container.format.flags & cast("int", Flags.ts_discont.value))
        self.rate = float(rate)
        """Average frame rate as stated, frames per second; 25 where nothing is, as in ffmpeg."""
        self._time_base = stream.time_base or Fraction(1 / self.rate)
        self._half_tick = float(self._time_base) / 2
        self._origin = 0.0
        self._origin = self._seconds(stream.start_time or 0)

    def _open(self) -> None:
        self._ahead: av.Packet[av.VideoStream] | None = None
        """Taken from the container, and not yet from `_packets`."""
        self._container = av.open(self.path)
        self._stream = _main_stream(self._container, self.path)
        # The store is filled by several processes at once; starting threads in each costs more than it saves.
        self._stream.codec_context.thread_count = 1

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _seconds(self, ticks: float) -> float:
        """Return seconds from the first frame of a time in the stream's time base."""
        return ticks * self._time_base.numerator / self._time_base.denominator - self._origin

    # -------------------------------------------------------------------------------------------------- end

    @cached_property
    def last_and_end(self) -> tuple[float, float]:
        """Time of the last frame, and when it stops being shown; packets are read from the last keyframe on, not decoded.

        Raises:
            VideoError: the video stream has no frame.
        """
        stated = self._stated_end
        for before in TAIL_S if stated is not None and not self._is_joined else ():
            if self._seek(max(0.0, (stated or 0.0) - before)) and (found := self._read_end()):
                return found
        self._reopen()
        if found := self._read_end():
            return found
        raise unreadable(Path(self.path), "it has no frame")

    @property
    def is_truncated(self) -> bool:
        """Whether the file promises frames after its last one, and is shorter than it says."""
        stated, end = self._stated_end, self.last_and_end[1]
        return stated is not None and end + 1.5 / self.rate < stated and is_cut_off(Path(self.path))

    @cached_property
    def _stated_end(self) -> float | None:
        """What the header says; of the whole file where it says nothing of the stream."""
        stream, container = self._stream, self._container
        if stream.start_time is None:
            return None
        if stream.duration is not None:
            return self._seconds(stream.duration) + self._origin
        if container.duration is None:
            return None
        return float((container.start_time or 0) + container.duration) / av.time_base - self._origin

    @cached_property
    def _is_joined(self) -> bool:
        """Whether the clock jumps, so that no time can be sought; all packets are read, of formats that may have jumps."""
        if not self._may_jump:
            return False
        stat = Path(self.path).stat()
        key = (self.path, stat.st_size, stat.st_mtime_ns)
        if key not in _JOINED:
            self._reopen()
            joint = self._new_joint()
            with contextlib.suppress(av.error.InvalidDataError):
                _JOINED[key] = any(joint.follow(packet) for packet in self._container.demux(self._stream))
        return _JOINED.get(key, False)

    def _new_joint(self) -> _Joint:
        return _Joint(self._time_base, round(1 / self.rate / self._time_base))

    def _read_end(self) -> tuple[float, float] | None:
        """Return `last_and_end` of the packets that follow; None where there is none."""
        last, end, count, step = -math.inf, 0.0, 0, 1 / self.rate
        for packet in self._packets():
            if packet.size == 0 or packet.is_discard:
                continue
            step = float((packet.duration or 0) * self._time_base) or 1 / self.rate
            t = count * step if packet.pts is None else self._seconds(packet.pts)
            count += 1
            if t > last:
                last, end = t, t + step
        return (self._on_grid(last), end) if count else None

    def _on_grid(self, t: float) -> float:
        """Return a time as a multiple of the frame interval where it is one but for the rounding of the file's clock."""
        even = round(t * self.rate) / self.rate
        return even if abs(even - t) <= 2 * self._half_tick else t

    # ----------------------------------------------------------------------------------------------- frames

    @cached_property
    def _keyframes(self) -> list[float]:
        """Times from which the file can be decoded, by its index; none where it has no index."""
        return [self._seconds(entry.timestamp) for entry in self._stream.index_entries if entry.is_keyframe]

    def _runs(self, times: Sequence[float]) -> Iterator[Sequence[float]]:
        """Yield times between which all frames are decoded; from one run to the next seeking leaves a second or more out."""
        begin = 0
        for place, (before, time) in enumerate(pairwise(times), 1):
            keyframe = bisect_right(self._keyframes, time) - 1
            if keyframe >= 0 and self._keyframes[keyframe] > before + SKIPPED_S:
                yield times[begin:place]
                begin = place
        yield times[begin:]

    def frames_at(self, times: Sequence[float]) -> Iterator[tuple[float, av.VideoFrame]]:
        """For every time, ascending, the frame on screen, with its own time.

        Where frames follow each other evenly, the nearest one counts: times of annotations are rounded, or are those of frames
        between which the file has none. The last frame stays, as the first stands for times before it.

        Raises:
            VideoError: no frame can be decoded.
            av.FFmpegError: the file cannot be read.
        """
        for run in [times] if self._is_joined else self._runs(times):
            yield from self._frames_at(run)

    def _frames_at(self, times: Sequence[float]) -> Iterator[tuple[float, av.VideoFrame]]:
        shown: tuple[float, av.VideoFrame] | None = None
        place = 0
        for t, frame in self._frames(times[0]):
            while (
                shown is not None and place < len(times) and not self._takes_over(times[place], shown[0], t)
            ):
                yield shown
                place += 1
            shown = t, frame
            while place < len(times) and times[place] <= t:
                yield shown
                place += 1
            if place == len(times):
                return
        if shown is None:
            raise unreadable(Path(self.path), "no frame can be decoded")
        for _ in times[place:]:
            yield shown

    def _takes_over(self, time: float, shown: float, following: float) -> bool:
        """Return whether the following frame counts at a time that is not before the one shown."""
        ahead = following - time
        is_even = following - shown <= 1.5 * min(1 / self.rate, LONGEST_INTERVAL_S)
        return ahead < time - shown and (is_even or ahead <= ROUNDING_S)

    def _frames(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield frames as they are shown, with their times; the first is on screen at `start`, or before."""
        sought = not self._is_joined and self._seek_keyframe(start)
        if not sought:
            self._reopen()
        frames = self._decoded()
        first = next(frames, None)
        if sought and (first is None or first[0] > start + self._half_tick):
            self._reopen()  # decoders drop frames until they have recovered
            frames = self._decoded()
            first = next(frames, None)
        if first is not None:
            yield first
            yield from frames

    def _decoded(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield frames of the packets that follow, their times ascending."""
        clock, last = _Clock(0.5 / self.rate / self._half_tick), -math.inf
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                # Decoders have many errors for damaged data; ffmpeg continues after all of them.
                self.damaged += 1
                continue
            for frame in frames:
                t = self._seconds(clock.ticks(frame))
                if t == last:  # the first of two stays on screen
                    continue
                if t < last:  # a jump back, e.g. of files put together: the frame follows the one before
                    t = last + (float((frame.duration or 0) * self._time_base) or 1 / self.rate)
                last = t
                yield t, frame

    def to_rgb(self, frame: av.VideoFrame, height: int | None, width: int | None) -> np.ndarray:
        """Return [H, W, 3] uint8 of a frame as a player turns it; `height` and `width` are of the turned one, None keeps its own.

        Raises:
            VideoError: the frame is to be turned by another angle than a multiple of 90 degrees.
        """
        (a, b), (c, d) = _turn(frame, self.path)
        if not a:
            height, width = width, height
        pixels = frame.to_ndarray(format="rgb24", height=height, width=width, threads=1)
        if not a:
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

    # -------------------------------------------------------------------------------------------- positions

    def _packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """Yield the packets from here on, as far as the file can be read; the last is empty, for the decoder's delay."""
        if self._ahead is not None:
            yield self._ahead
            self._ahead = None
        try:
            joint = self._new_joint() if self._may_jump else None
            for packet in self._container.demux(self._stream):
                if joint is not None:
                    joint.follow(packet)
                yield packet
        except av.error.InvalidDataError:
            self.damaged += 1

    def _reopen(self) -> None:
        """Go to the first packet; seeking does not lead there in every format."""
        self._container.close()
        self._open()

    def _seek(self, t: float) -> bool:
        """Go to a packet before a time, a keyframe where the file has an index; False where that fails."""
        self._ahead = None
        try:
            self._container.seek(round((t + self._origin) / self._time_base), stream=self._stream)
        except (av.FFmpegError, OSError):
            return False
        return True

    def _seek_keyframe(self, start: float) -> bool:
        """Go to a keyframe that is shown at `start` or before; False where none is found.

        Indices are by decoding times, and some formats have none: what is found may be shown later, or not be a keyframe.
        """
        back = 0.0
        while self._stated_end is not None and back <= start and self._seek(start - back):
            packet = next(self._packets(), None)
            time = None if packet is None or packet.pts is None else self._seconds(packet.pts)
            if (
                packet is not None
                and packet.is_keyframe
                and time is not None
                and time <= start + self._half_tick
            ):
                self._ahead = packet
                return True
            back = 2 * back + 1.0
        return False


_JOINED: dict[tuple[str, int, int], bool] = {}
"""`Video._is_joined` by path, size and modification time: many clips are of one file."""


class _Joint:
    """Times of packets whose clock may jump, brought to one that does not."""

    def __init__(self, time_base: Fraction, step: int) -> None:
        self._back = round(JUMP_BACK_S / time_base)
        self._ahead = round(JUMP_AHEAD_S / time_base)
        self._step = step
        self._shift = 0
        """Added to the times of packets, in the stream's time base."""
        self._last: int | None = None
        self._next = 0
        self._delay = 0
        """From the decoding to the presentation of a packet."""

    def follow(self, packet: av.Packet[av.VideoStream]) -> bool:
        """Put the next packet after the one before, where its time jumps; returns whether one has jumped so far."""
        if packet.dts is None:
            return self._shift != 0
        dts = packet.dts + self._shift
        if self._last is not None and not self._last - self._back <= dts <= self._next + self._ahead:
            self._shift += self._next - dts
            dts = self._next
        if packet.pts is not None:
            delay = packet.pts + self._shift - dts
            if abs(delay) <= self._ahead:  # else the clock jumps between the two
                self._delay = delay
            packet.pts = dts + self._delay
        packet.dts = dts
        self._last, self._next = dts, dts + (packet.duration or self._step)
        return self._shift != 0


class _Clock:
    """Times of frames, as ffmpeg guesses them: those of presentation unless they go back more often than those of decoding."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._next = 0.0
        self._pts = self._dts = -math.inf
        self._faults = 0
        """Of presentation times, less those of decoding times."""

    def ticks(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame, in the stream's time base."""
        if frame.dts is not None:
            self._faults -= frame.dts <= self._dts
            self._dts = frame.dts
        if frame.pts is not None:
            self._faults += frame.pts <= self._pts
            self._pts = frame.pts
        found = frame.pts if frame.pts is not None and self._faults <= 0 else frame.dts
        time = self._next if found is None else found
        self._next = time + (frame.duration or self._step)
        return time


def _main_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    """Return the stream that ffmpeg takes: the default one, of those the largest; never a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams and is_cut_off(Path(path)):
        raise unreadable(Path(path), "no video stream is found")
    if not streams:
        raise VideoError(f"{path}: has no video stream", remedy="drop its rows")
    return max(streams, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))


def _turn(frame: av.VideoFrame, path: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the display matrix ((a, b), (c, d)), of -1, 0 and 1: column x, row y is shown at column a x + c y, row b x + d y."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return (1, 0), (0, 1)
    matrix = np.frombuffer(data, np.int32).astype(float)[[0, 1, 3, 4]]
    scale = np.abs(matrix).max()
    if not scale:
        return (1, 0), (0, 1)
    a, b, c, d = (round(x) for x in matrix / scale)
    if np.abs(matrix / scale - (a, b, c, d)).max() > 0.02 or abs(a * d - b * c) != 1:
        degrees = math.degrees(math.atan2(matrix[1], matrix[0])) % 360
        raise VideoError(
            f"{path}: its frames are to be turned by {degrees:.0f} degrees",
            remedy="only multiples of 90 are supported: re-encode it, e.g. ffmpeg -i IN OUT.mp4",
        )
    return (a, b), (c, d)
