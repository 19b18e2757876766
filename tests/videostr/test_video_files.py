"""Files as phones, recorders, cutters and broken disks leave them: what is read is what ffmpeg shows."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from videostr import video as video_module
from videostr.errors import VideoError
from videostr.truncation import is_cut_off
from videostr.types import ClipSpec
from videostr.video import ClipFrames, FrameStore, decode, name_clip, probe

WIDTH, HEIGHT = 64, 48
COUNT = 40
"""Frames of most videos here, at 10/s: the last one is shown at 3.9 s."""
TENTHS = tuple(i / 10 for i in range(COUNT))


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Brightness 6 i + 4, the left upper quarter white, the left lower one black: it looks different however it is turned."""
    pixels = np.full((height, width, 3), 6 * number + 4, np.uint8)
    pixels[: height // 2, : width // 2] = 255
    pixels[height // 2 :, : width // 2] = 0
    return pixels


def write(
    path: Path,
    times: Sequence[float] = TENTHS,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    start: float = 0.0,
    matrix: Sequence[float] | None = None,
) -> Path:
    """Frame i is shown at `times[i]`, the file's clock beginning at `start`."""
    settings = {"g": "10", "crf": "1", "x264-params": "scenecut=0"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=10, options=settings | (options or {}))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        if codec.startswith("mpeg") or path.suffix == ".h264":  # formats that have a rate in place of times
            stream.codec_context.time_base = Fraction(1, 10)
        if codec in ("gif", "apng"):
            stream.codec_context.time_base = Fraction(1, 100)
        if matrix is not None:
            stream.set_display_matrix(list(matrix))
        for number, t in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            base = stream.codec_context.time_base
            frame.pts, frame.time_base = round((t + start) / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def copy(source: Path, target: Path, change: Callable[[av.Packet], av.Packet | None], **options: str) -> Path:
    """The packets of a file in another one; `change` may change or drop one."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size and (changed := change(packet)) is not None:
                changed.stream = stream
                out.mux(changed)
    return target


def numbers(frames: ClipFrames) -> list[int]:
    """Numbers of the frames, by their brightness in the right half of the upright picture."""
    right = frames.pixels[:, :, frames.pixels.shape[2] // 2 + 4 :]
    return [round((float(image.mean()) - 4) / 6) for image in right]


def read(path: Path, num_frames: int, **interval: float) -> ClipFrames:
    return decode(ClipSpec(video=str(path), num_frames=num_frames, **interval))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ containers

CONTAINERS = {
    "v.mp4": {},
    "v.mkv": {},
    "live.mkv": {"container": {"live": "1"}},
    "v.mov": {},
    "v.ts": {},
    "v.flv": {},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "v.h264": {},
    "v.webm": {"codec": "libvpx", "options": {"crf": "4", "b": "2M", "deadline": "realtime"}},
    "v.avi": {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "2"}},
    "v.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "v.apng": {"codec": "apng", "pix_fmt": "rgb24"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("name", CONTAINERS)
def test_any_container_shows_all_its_frames(name: str, folder: Path) -> None:
    path = write(folder / name, **CONTAINERS[name])
    # 16 times from 0 to 3.9 s lie 0.26 s apart; the nearest frames: 0.26 -> 3, 0.52 -> 5, ..., 3.64 -> 36, 3.9 -> 39.
    expected = [0, 3, 5, 8, 10, 13, 16, 18, 21, 23, 26, 29, 31, 34, 36, 39]
    frames = read(path, 16)
    # GIF has 256 colours; H.264 without a container has no times, and those of its frame rate are late by rounding.
    assert np.allclose(numbers(frames), expected, atol=1)
    assert len({image.tobytes() for image in frames.pixels}) == 16
    assert frames.times == pytest.approx([0.1 * number for number in numbers(frames)], abs=0.11)
    assert frames.remarks == []
    assert probe(path).seconds == pytest.approx(3.9, abs=0.01)
    # A part of it, in which reading starts at a keyframe, has the same frames.
    whole = read(path, COUNT)
    part = read(path, 16, start_s=1.5, end_s=3.0)
    assert all(any(np.array_equal(image, other) for other in whole.pixels) for image in part.pixels)
    assert np.allclose(part.times, [1.5 + 0.1 * i for i in range(16)], atol=0.051)


@pytest.mark.parametrize(
    "options", [{"bf": "3"}, {"bf": "3", "x264-params": "scenecut=0:open-gop=1"}], ids=["closed", "open"]
)
@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "b.ts"])
def test_a_part_begins_with_the_right_frame_whatever_the_order_of_packets(
    name, options, folder: Path
) -> None:
    path = write(folder / f"{len(options)}{name}", options=options)
    for first in range(39):
        frames = read(path, 2, start_s=first / 10, end_s=3.9)
        assert numbers(frames) == [first, 39]


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts", "late.mov"])
@pytest.mark.parametrize("start", [0.5, 20.0])
def test_time_begins_with_the_first_frame(name: str, start: float, folder: Path) -> None:
    path = write(folder / f"{start}{name}", start=start, options={"bf": "2"})
    assert numbers(read(path, 4)) == [0, 13, 26, 39]
    assert numbers(read(path, 3, start_s=1.2, end_s=2.6)) == [12, 19, 26]
    assert probe(path).seconds == pytest.approx(3.9)


def test_a_cover_picture_is_not_the_video(folder: Path) -> None:
    path = folder / "cover.mp4"
    with av.open(str(path), "w") as out:
        cover = out.add_stream("mjpeg", rate=10)
        cover.width, cover.height, cover.pix_fmt = 128, 128, "yuvj420p"  # type: ignore[union-attr]
        cover.disposition = Disposition.attached_pic
        stream = out.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"  # type: ignore[union-attr]
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((128, 128, 3), np.uint8), format="rgb24")))  # type: ignore[union-attr]
        for number in range(COUNT):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))  # type: ignore[union-attr]
        out.mux(stream.encode())  # type: ignore[union-attr]
    assert numbers(read(path, 4)) == [0, 13, 26, 39]


def test_a_longer_sound_does_not_prolong_the_video(folder: Path) -> None:
    for suffix in ("mp4", "mkv"):
        path = folder / f"sound.{suffix}"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=10, options={"crf": "1"})
            sound = out.add_stream("aac", rate=16000)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"  # type: ignore[union-attr]
            for number in range(COUNT):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))  # type: ignore[union-attr]
            out.mux(stream.encode())  # type: ignore[union-attr]
            for place in range(0, 6 * 16000, 1024):
                chunk = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                chunk.sample_rate, chunk.pts = 16000, place
                out.mux(sound.encode(chunk))  # type: ignore[union-attr]
            out.mux(sound.encode())  # type: ignore[union-attr]
        frames = read(path, 4)
        assert numbers(frames) == [0, 13, 26, 39]
        assert frames.remarks == []


# ------------------------------------------------------------------------------------------------------ time


def test_of_a_pause_the_frame_on_screen_is_read(folder: Path) -> None:
    # 20 frames in 4 s, none between 0.4 and 2.5 s.
    times = [i / 10 for i in range(COUNT) if not 5 <= i <= 24]
    path = write(folder / "pause.mp4", times)
    frames = read(path, 4)  # at 0, 1.3, 2.6 and 3.9 s
    assert frames.times == pytest.approx((0.0, 0.4, 2.6, 3.9))
    assert numbers(frames) == [0, 4, 6, 19]
    # Until the next one starts, however near that is; a time that is rounded by less than 5 ms means it.
    assert numbers(read(path, 2, start_s=2.0, end_s=2.4)) == [4, 4]
    assert numbers(read(path, 2, start_s=2.45, end_s=2.496)) == [4, 5]
    # The metadata says when the frames are, though they have no even rate to be counted in.
    metadata = frames.metadata
    assert [i / metadata["fps"] for i in metadata["frames_indices"]] == pytest.approx(frames.times, abs=0.001)


def test_slides_stay_until_the_next_one(folder: Path) -> None:
    path = write(folder / "slides.mkv", [0.0, 40.0, 60.0])
    frames = read(path, 7)  # every 10 s
    assert frames.times == pytest.approx((0.0, 0.0, 0.0, 0.0, 40.0, 40.0, 60.0))
    assert numbers(frames) == [0, 0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("name", ["rates.mp4", "rates.mkv"])
def test_the_end_of_a_file_that_slows_down_is_shown(name: str, folder: Path) -> None:
    # 20 frames in the first second, then five in five.
    times = [*(i / 20 for i in range(20)), 1.0, 2.0, 3.0, 4.0, 5.0]
    path = write(folder / name, times)
    frames = read(path, 6)
    assert frames.times == pytest.approx((0.0, 1.0, 2.0, 3.0, 4.0, 5.0), abs=0.001)
    assert probe(path).seconds == pytest.approx(5.0)


def test_an_edit_list_hides_frames(folder: Path) -> None:
    # Cut at 1.25 s without coding again: packets from the keyframe at 1.0 s on, those before 1.25 s hidden.
    source = write(folder / "long.mp4", options={"bf": "2"})

    def shifted(packet: av.Packet) -> av.Packet | None:
        assert packet.pts is not None
        assert packet.dts is not None
        assert packet.time_base is not None
        if packet.pts * packet.time_base < 1 - Fraction(1, 1000):
            return None
        packet.pts -= round(Fraction(5, 4) / packet.time_base)
        packet.dts -= round(Fraction(5, 4) / packet.time_base)
        return packet

    path = copy(source, folder / "cut.mp4", shifted)
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 30  # so many packets, of which 3 are hidden
    frames = read(path, 4)  # at 0, 0.867, 1.733 and 2.6 s after frame 13, which lies at 0.05 s
    assert numbers(frames) == [13, 22, 30, 39]
    assert frames.times[-1] == pytest.approx(2.6, abs=0.06)


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ({"start_s": 4.5}, r"clip\.start_s = 4\.5: the video ends at 4\.00 s"),
        ({"start_s": 50.0, "end_s": 60.0}, r"clip\.start_s = 50: the video ends at 4\.00 s"),
        ({"start_s": -1.0, "end_s": 2.0}, r"clip\.start_s = -1: must be 0 or more"),
    ],
)
def test_an_interval_outside_the_video_says_so(
    interval: dict[str, float], message: str, folder: Path
) -> None:
    images = folder / "outside.frames.json"
    Image.fromarray(picture(0)).save(folder / "outside.png")
    listed = [[t, "outside.png"] for t in TENTHS]
    images.write_text(json.dumps({"root": ".", "fps": 10, "frames": listed}))
    for path in (write(folder / "outside.mp4"), write(folder / "outside.mkv"), images):
        with pytest.raises(VideoError, match=rf"{path.name}: {message}"):
            read(path, 4, **interval)


def test_the_interval_is_cut_at_the_last_frame(folder: Path) -> None:
    path = write(folder / "ends.mp4")
    assert numbers(read(path, 3, start_s=3.5, end_s=100.0)) == [35, 37, 39]
    # While the last frame is on screen, it is what is seen.
    for start in (3.9, 3.95, 4.0):
        frames = read(path, 3, start_s=start)
        assert numbers(frames) == [39, 39, 39]
        (remark,) = frames.remarks
        assert "all 3 selected frames are the same frame of the file, that at 3.90 s" in remark


def test_a_still_clip_is_logged_once(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(folder / "still.mp4", [0.0])
    assert probe(path).seconds == 0
    assert read(path, 1).remarks == []
    store, clip = FrameStore(tmp_path), name_clip(ClipSpec(video=path.name, num_frames=4), folder)
    for _ in range(2):
        assert store.frames(clip).pixels.shape[0] == 4
    (record,) = caplog.records
    assert f"{path}: all 4 selected frames are the same frame" in record.getMessage()


def test_prompt_metadata_and_graph_share_a_clock(folder: Path) -> None:
    path = write(folder / "clock.mp4")
    frames = read(path, 4, start_s=2.0, end_s=3.5)
    metadata = frames.metadata
    assert (
        [i / metadata["fps"] for i in metadata["frames_indices"]]
        == list(frames.times)
        == [2.0, 2.5, 3.0, 3.5]
    )
    # The rate is that of the part: 4 of its 16 frames at 10/s.
    assert len(frames.times) / metadata["total_num_frames"] * metadata["fps"] == 4 / 16 * 10


def test_numbers_of_images_tell_their_times(folder: Path) -> None:
    # At 1/s, images at 0, 0.5 and 1 s would be frames 0, 0 and 1, which a processor takes for 0, 0 and 1 s.
    Image.fromarray(picture(0)).save(folder / "numbered.png")
    path = folder / "numbered.frames.json"
    for times in ([0.0, 0.5, 1.0], [0.0, 1.0, 2.0]):
        path.write_text(json.dumps({"root": ".", "fps": 1, "frames": [[t, "numbered.png"] for t in times]}))
        frames = read(path, 3)
        assert [i / frames.fps for i in frames.indices] == times
    assert frames.fps == 1


def test_frames_of_another_reading_are_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ClipSpec(video=write(folder / "digest.mp4").name, num_frames=2)
    before = name_clip(spec, folder).digest
    monkeypatch.setattr(video_module, "DECODING", video_module.DECODING + 1)
    assert name_clip(spec, folder).digest != before


# ---------------------------------------------------------------------------------------------------- pixels

ONE = 65536
LAST = 1 << 30
TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    # (a, b, c, d): column x, row y is shown at column a x + c y, row b x + d y.
    "none": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "half": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "counter-clockwise": ((0, -1, 1, 0), np.rot90),
    "left to right": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


def display_matrix(a: int, b: int, c: int, d: int) -> list[int]:
    return [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, LAST]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_frames_are_turned_as_the_file_says(turn: str, suffix: str, folder: Path) -> None:
    matrix, turned = TURNS[turn]
    path = write(folder / f"{turn}.{suffix}", TENTHS[:3], matrix=display_matrix(*matrix))
    expected = turned(picture(1))
    pixels = read(path, 3).pixels[1]
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 3
    shape = probe(path)
    assert (shape.height, shape.width) == expected.shape[:2]
    small = decode(ClipSpec(video=str(path), num_frames=1, height=24, width=16)).pixels[0]
    assert small.shape == (24, 16, 3)
    quarters = expected.reshape(2, expected.shape[0] // 2, 2, expected.shape[1] // 2, 3).mean((1, 3, 4))
    assert np.abs(small.reshape(2, 12, 2, 8, 3).mean((1, 3, 4)) - quarters).max() < 20


def test_other_angles_are_refused(folder: Path) -> None:
    path = write(folder / "askew.mp4", TENTHS[:3], matrix=[46341, 46341, 0, -46341, 46341, 0, 0, 0, LAST])
    with pytest.raises(
        VideoError, match=r"askew\.mp4: its frames are to be turned by 45 degrees; only multiples of 90"
    ):
        read(path, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_turned_as_their_exif_says(orientation: int, suffix: str, tmp_path: Path) -> None:
    # The tag says where the picture's first row and first column are: top left, top right, bottom right, bottom left, and the
    # same four with rows and columns exchanged.
    turned = [
        lambda p: p, lambda p: p[:, ::-1], lambda p: p[::-1, ::-1], lambda p: p[::-1],
        lambda p: p.swapaxes(0, 1), lambda p: np.rot90(p, -1), lambda p: p[::-1, ::-1].swapaxes(0, 1), np.rot90,
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(20)).save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    listed = tmp_path / "v.frames.json"
    listed.write_text(json.dumps({"root": ".", "fps": 1, "frames": [[0.0, f"a.{suffix}"]]}))
    expected = turned[orientation - 1](picture(20))
    pixels = read(listed, 1).pixels[0]
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 6
    assert (probe(listed).height, probe(listed).width) == expected.shape[:2]


def deep_png(path: Path, channels: int) -> None:
    """A PNG of 16 bits a channel, big-endian: columns 0, 256, ... of 65536."""
    import zlib

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    row = b"".join(struct.pack(">H", 1024 * x + 512) * channels for x in range(WIDTH))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + row) * HEIGHT)),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_deep_and_other_images_keep_their_brightness(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(WIDTH, dtype=np.uint8) * 4 + 2, (HEIGHT, 1))  # (1024 x + 512) / 256
    for channels in (1, 2, 3, 4):
        deep_png(tmp_path / f"deep{channels}.png", channels)
    Image.fromarray(ramp.astype(np.uint16) * 256).save(tmp_path / "deep.tif")
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(ramp).convert("LA").save(tmp_path / "alpha.png")
    Image.fromarray(np.stack([ramp] * 3 + [ramp * 0], -1), "RGBA").save(tmp_path / "clear.png")
    Image.fromarray(ramp).convert("CMYK").save(tmp_path / "print.tif")
    (tmp_path / "deep.pgm").write_bytes(
        b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + (ramp.astype(np.uint16) * 256).astype(">u2").tobytes()
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 11
    listed = tmp_path / "v.frames.json"
    listed.write_text(
        json.dumps({"root": ".", "fps": 1, "frames": [[i, name] for i, name in enumerate(names)]})
    )
    for name, image in zip(names, read(listed, 11).pixels, strict=True):
        assert np.abs(image.astype(int) - ramp[..., None]).max() <= 1, name
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    listed.write_text(json.dumps({"root": ".", "fps": 1, "frames": [[0, "float.tif"]]}))
    with pytest.raises(VideoError, match=r"float\.tif: image cannot be read \(its brightness has 32 bits"):
        read(listed, 1)


def test_lists_of_images_keep_their_rules(tmp_path: Path) -> None:
    listed = tmp_path / "v.frames.json"
    for content, rule in (
        ({"root": ".", "fps": 0, "frames": [[0, "a.png"]]}, "fps = 0: must be above 0"),
        ({"root": ".", "fps": 1, "frames": [[1, "a.png"], [0, "b.png"]]}, "ascend"),
        ({"root": ".", "fps": 1, "frames": [[-1, "a.png"]]}, "0 or more"),
    ):
        listed.write_text(json.dumps(content))
        with pytest.raises(VideoError, match=rf"v\.frames\.json: .*{rule}"):
            read(listed, 1)


@pytest.mark.parametrize(
    ("pix_fmt", "size", "codec"),
    [
        ("yuv420p", (64, 48), "libx264"),
        ("yuv444p", (65, 49), "libx264"),
        ("yuvj420p", (64, 48), "libx264"),
        ("yuv420p10le", (64, 48), "libx264"),
        ("rgb24", (65, 49), "libx264rgb"),
    ],
)
def test_any_pixel_format_gives_its_colours(pix_fmt, size, codec, folder: Path) -> None:
    path = write(
        folder / f"{pix_fmt}.mkv",
        TENTHS[:3],
        pix_fmt=pix_fmt,
        size=size,
        codec=codec,
        options={"crf": "1", "qp": "1"},
    )
    frames = read(path, 3)
    assert frames.pixels.shape[1:3] == size[::-1]
    for number in range(3):
        assert np.abs(frames.pixels[number].astype(int) - picture(number, *size)).mean() < 4


def test_a_size_that_changes_becomes_that_of_the_first_frame(folder: Path) -> None:
    small = write(folder / "small.h264", TENTHS[:20])
    large = write(folder / "large.h264", TENTHS[:20], size=(128, 96))
    path = folder / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    frames = read(path, 8)
    assert frames.pixels.shape == (8, HEIGHT, WIDTH, 3)
    assert len(set(frames.times)) == 8


# ------------------------------------------------------------------------------------------------ broken files


def test_truncated_is_said_only_of_files_that_are(folder: Path) -> None:
    whole = {
        "front.mp4": write(folder / "front.mp4", container={"movflags": "faststart"}),
        "behind.mp4": write(folder / "behind.mp4"),
        "fragment.mp4": write(folder / "fragment.mp4", container={"movflags": "frag_keyframe+empty_moov"}),
        "v.mkv": write(folder / "whole.mkv"),
        "v.avi": write(folder / "whole.avi", **CONTAINERS["v.avi"]),
    }
    for name, path in whole.items():
        assert not is_cut_off(path)
        content = path.read_bytes()
        cut = folder / f"cut-{name}"
        data = content.index(b"mdat") if name == "front.mp4" else 0
        cut.write_bytes(content[: data + (len(content) - data) * 6 // 10])
        with pytest.raises(VideoError, match=rf"cut-{name}: truncated: .*restore the file"):
            read(cut, 4)
        if name in ("front.mp4", "v.mkv"):  # what is there can be used
            assert numbers(read(cut, 3, start_s=0.1, end_s=0.5)) == [1, 3, 5]
            with pytest.raises(VideoError, match="truncated"):
                read(cut, 3, start_s=0.2, end_s=3.9)
        with pytest.raises(VideoError, match="truncated"):
            probe(cut)


def test_a_header_that_lies_about_the_length_is_not_believed(folder: Path) -> None:
    path = write(folder / "lies.mkv")
    content = path.read_bytes()
    place = content.index(b"\x44\x89\x88") + 3  # Duration, a float64 of milliseconds
    assert struct.unpack(">d", content[place : place + 8])[0] == pytest.approx(4000)
    for stated in (1000.0, 60000.0):
        path.write_bytes(content[:place] + struct.pack(">d", stated) + content[place + 8 :])
        frames = read(path, 4)
        assert numbers(frames) == [0, 13, 26, 39]
        assert probe(path).seconds == pytest.approx(3.9)


def test_damaged_packets_are_skipped_and_told(folder: Path) -> None:
    source = write(folder / "good.mkv", options={"g": "1"})
    damaged = (17, 18)
    count = 0

    def damage(packet: av.Packet) -> av.Packet:
        nonlocal count
        count += 1
        if count - 1 not in damaged:
            return packet
        broken = av.Packet(b"\xff" * packet.size)
        broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
        return broken

    path = copy(source, folder / "damaged.mkv", damage)
    frames = read(path, COUNT)
    assert numbers(frames) == [*range(17), 16, 16, *range(19, COUNT)]
    assert "2 damaged packets cannot be decoded" in frames.remarks[0]
    assert read(path, 4, start_s=3.0).remarks == []


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("start", [0.0, 100.0])
def test_joined_recordings_are_read_to_their_end(suffix: str, start: float, folder: Path) -> None:
    # The clock of the second begins again, or is far ahead: its 40 frames follow the 40 of the first, at 4 s and later.
    codec, options = (
        ("libx264", {"bf": "2"}) if suffix == "ts" else ("mpeg2video", {"qmin": "1", "qmax": "1"})
    )
    parts = [
        write(folder / f"part{i}-{start:g}.{suffix}", codec=codec, start=i * start, options=options)
        for i in range(2)
    ]
    path = folder / f"joined-{start:g}.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert probe(path).seconds == pytest.approx(7.9, abs=0.01)
    frames = read(path, 80)
    assert frames.times == pytest.approx([i / 10 for i in range(80)], abs=0.01)
    assert numbers(frames) == [*range(40), *range(40)]
    assert numbers(read(path, 3, start_s=5.0, end_s=6.0)) == [10, 15, 20]
    assert numbers(read(path, 2, start_s=3.9, end_s=4.0)) == [39, 0]


@pytest.mark.parametrize("suffix", [".mp4", ".frames.json", ".png"])
def test_what_is_no_file_is_refused_at_once(suffix: str, folder: Path) -> None:
    pipe, place, loop = (folder / f"{name}{suffix}" for name in ("pipe", "place", "loop"))
    os.mkfifo(pipe)
    place.mkdir()
    loop.symlink_to(loop.name)
    for path, reason in (
        (pipe, "is a pipe"),
        (place, "is a folder"),
        (loop, "cannot be read|is not a list|symbolic"),
    ):
        if suffix == ".png":
            listed = folder / f"of-{path.stem}.frames.json"
            listed.write_text(json.dumps({"root": ".", "fps": 1, "frames": [[0.0, path.name]]}))
        else:
            listed = path
            with pytest.raises(VideoError, match=rf"{path.name}: .*({reason})"):
                name_clip(ClipSpec(video=path.name, num_frames=2), folder)
        for call in (lambda listed=listed: read(listed, 2), lambda listed=listed: probe(listed)):
            with pytest.raises(VideoError, match=rf"{path.name}: .*({reason})"):
                call()


def test_a_name_may_look_like_an_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "plain.mp4").rename(folder / "take:1.mp4")
    monkeypatch.chdir(folder)
    assert numbers(read(Path("take:1.mp4"), 2)) == [0, 39]
    assert probe(Path("take:1.mp4")).seconds == pytest.approx(3.9)


def test_files_without_a_picture_say_so(folder: Path) -> None:
    empty = folder / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(VideoError, match=r"empty\.mp4: the file is empty"):
        read(empty, 2)
    sound = folder / "sound.wav"
    with av.open(str(sound), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        chunk = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        chunk.sample_rate = 8000
        out.mux(stream.encode(chunk))  # type: ignore[union-attr]
    for call in (lambda: read(sound, 2), lambda: probe(sound)):
        with pytest.raises(VideoError, match=r"sound\.wav: has no video stream"):
            call()


# --------------------------------------------------------------------------------------------- against ffmpeg


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("name", list(CONTAINERS))
def test_frames_are_those_of_ffmpeg(name: str, folder: Path) -> None:
    path = write(folder / f"f-{name}", **CONTAINERS[name])
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    shown = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert len(shown) == COUNT
    frames = read(path, COUNT)
    assert np.abs(frames.pixels.astype(int) - shown).mean((1, 2, 3)).max() < 2
