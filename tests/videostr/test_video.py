"""The frame store on real files: which frames, once, and what is said of broken ones."""

from __future__ import annotations

import json
import multiprocessing
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videostr.errors import VideoError
from videostr.media import Video
from videostr.types import Clip, ClipSpec
from videostr.video import ClipFrames, FrameStore, decode, name_clip, probe, reordered


def write_video(path: Path, frames: int = 20, fps: int = 10, size: int = 32) -> None:
    """Frame i has brightness 10 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "0"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv444p"
        for index in range(frames):
            image = np.full((size, size, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path)
    return path


def brightness(pixels: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in pixels]


def test_frames_at_equal_spacing_ends_included(video):
    # 20 frames at 10/s end at 1.9 s; three frames lie at 0, 0.95 and 1.9 s, of which 0.95 has frames 9 and 10 nearest.
    frames = decode(ClipSpec(video=str(video), num_frames=3))
    assert frames.indices in ((0, 9, 19), (0, 10, 19))
    assert brightness(frames.pixels) == list(frames.indices)
    assert frames.pixels.shape == (3, 32, 32, 3)
    assert frames.metadata == {
        "fps": 10.0,
        "duration": 2.0,
        "total_num_frames": 20,
        "frames_indices": list(frames.indices),
        "video_backend": "pyav",
        "do_sample_frames": False,
    }


def test_interval_and_size(video):
    frames = decode(ClipSpec(video=str(video), num_frames=2, start_s=0.5, end_s=1.2, height=16, width=8))
    assert frames.indices == (5, 12)
    assert frames.times == pytest.approx((0.5, 1.2))
    assert frames.pixels.shape == (2, 16, 8, 3)
    assert brightness(frames.pixels) == [5, 12]


def test_one_frame(video):
    assert decode(ClipSpec(video=str(video), num_frames=1, start_s=0.7)).indices == (7,)


EIGHT = tuple(range(8))


@pytest.mark.parametrize(
    ("times", "fps", "total", "seconds"),
    [
        # Whole videos, those of the tabletop: n frames of N count as n / N of the rate, though they lie (N - 1) / (n - 1) apart.
        ((0.0, 1.0, 2.0, 3.0), 4.0, 13, 1.625),
        (tuple(float(i) for i in EIGHT), 8.0, 57, 1.78125),
        # Parts are the same: 36 frames of a long video are as 36 of 36.
        (tuple(0.5 * i for i in EIGHT), 10.0, 36, 0.9),
        (tuple(0.5 * i for i in EIGHT), 10.0, 1059, 0.9),
        (tuple(20.3 + 0.5 * i for i in EIGHT), 10.0, 1059, 0.9),
        ((3.0, 3.5, 4.0, 4.5), 2.0, 80, 1.0),
        ((0.7,), 10.0, 20, 0.2),
        ((0.7, 0.7), 10.0, 20, 0.1),
    ],
)
def test_the_rate_of_a_part_is_that_of_a_video_of_its_own(times, fps, total, seconds):
    # Here, for the processes that another test starts import this file, and these take long.
    import torch
    from transformers.video_utils import VideoMetadata

    metadata = ClipFrames(
        pixels=np.zeros((len(times), 2, 2, 3), np.uint8),
        times=times,
        indices=tuple(round(t * fps) for t in times),
        fps=fps,
        total_frames=total,
    ).metadata
    del metadata["do_sample_frames"]
    # As Qwen2.5-VL's processor has it, with patches of two frames.
    stated = torch.tensor([2 / VideoMetadata(**metadata).sampled_fps])
    assert stated.item() == pytest.approx(seconds, rel=1e-6)
    assert len(metadata["frames_indices"]) == len(times)
    # Indices are those of the whole video: divided by its rate they are the times that prompt and graph name.
    assert [index / fps for index in metadata["frames_indices"]] == pytest.approx(times)
    assert metadata["duration"] == metadata["total_num_frames"] / metadata["fps"]


def test_store_decodes_once_and_shares_read_only_memory(video, tmp_path):
    store = FrameStore(tmp_path)
    clip = name_clip(ClipSpec(video=video.name, num_frames=4), video.parent)
    first = store.frames(clip)
    (entry,) = tmp_path.glob("*.npy")
    stamp = entry.stat().st_mtime_ns
    again = FrameStore(tmp_path).frames(clip)
    assert entry.stat().st_mtime_ns == stamp
    assert isinstance(again.pixels, np.memmap)
    assert not again.pixels.flags.writeable
    assert np.array_equal(first.pixels, again.pixels)
    assert (again.times, again.indices, again.fps) == (first.times, first.indices, first.fps)


def test_another_order_shares_the_pixels_and_keeps_the_times(video, tmp_path):
    """Frames 0, 6, 13 and 19 of a video whose frame i has brightness i."""
    clip = name_clip(ClipSpec(video=video.name, num_frames=4), video.parent)
    shuffled, single = reordered(clip, (2, 0, 3, 1)), reordered(clip, (1, 1))
    moved = FrameStore(tmp_path).frames(shuffled)  # before anybody asked for the clip itself
    plain = FrameStore(tmp_path).frames(clip)
    a, b, c, d = brightness(plain.pixels)
    assert brightness(moved.pixels) == [c, a, d, b]
    assert (moved.times, moved.indices, moved.metadata) == (plain.times, plain.indices, plain.metadata)
    one = FrameStore(tmp_path).frames(single)
    assert brightness(one.pixels) == [b, b]
    assert one.times == (plain.times[1],) * 2
    assert one.metadata["total_num_frames"] == 1
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert len({clip.digest, shuffled.digest, single.digest, reordered(clip, (2, 0, 1, 3)).digest}) == 4
    assert np.array_equal(FrameStore(tmp_path).stored(shuffled.digest).pixels, moved.pixels)


def _read(folder: Path, clip: Clip) -> float:
    return float(FrameStore(folder).frames(clip).pixels.mean())


def test_many_processes_at_once(video, tmp_path):
    clip = name_clip(ClipSpec(video=video.name, num_frames=4), video.parent)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        means = pool.starmap(_read, [(tmp_path, clip)] * 6)
    assert len(set(means)) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]


def test_digest_covers_file_and_sampling(video, tmp_path):
    spec = ClipSpec(video=video.name, num_frames=4)
    digest = name_clip(spec, video.parent).digest
    assert name_clip(spec, video.parent).digest == digest
    assert name_clip(ClipSpec(video=video.name, num_frames=5), video.parent).digest != digest
    other = tmp_path / video.name
    write_video(other, frames=19)
    assert name_clip(spec, tmp_path).digest != digest


def test_missing_truncated_and_foreign_files_are_named(video, tmp_path):
    with pytest.raises(VideoError, match=r"gone.mp4.*cannot be read"):
        name_clip(ClipSpec(video="gone.mp4", num_frames=2), tmp_path)
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(VideoError, match=r"text.mp4.*cannot be decoded"):
        decode(ClipSpec(video=str(text), num_frames=2))
    # Without its second half an MP4 written for streaming still opens; the frames at the end are missing.
    whole = tmp_path / "whole.mp4"
    with av.open(str(video)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size - 600])
    with pytest.raises(VideoError, match=r"cut.mp4: (truncated|cannot be decoded)"):
        decode(ClipSpec(video=str(cut), num_frames=4))
    store = FrameStore(tmp_path / "store")
    with pytest.raises(VideoError):
        store.frames(Clip(digest="0" * 32, spec=ClipSpec(video=str(text), num_frames=2)))
    assert list(store.folder.iterdir()) == []


def write_images(folder: Path, times: list[float], size: int = 32) -> Path:
    """Image i has brightness 10 i; the list lies next to them."""
    (folder / "images").mkdir()
    for index in range(len(times)):
        Image.fromarray(np.full((size, 2 * size, 3), 10 * index, np.uint8)).save(
            folder / f"images/{index}.png"
        )
    listed = {"root": "images", "fps": 10, "frames": [[t, f"{i}.png"] for i, t in enumerate(times)]}
    path = folder / "v.frames.json"
    path.write_text(json.dumps(listed))
    return path


def test_a_list_of_images_is_a_video(tmp_path):
    write_images(tmp_path, [0.0, 0.5, 1.0, 1.5, 2.0])
    clip = name_clip(ClipSpec(video="v.frames.json", num_frames=3, start_s=0.5, end_s=1.6), tmp_path)
    frames = FrameStore(tmp_path / "store").frames(clip)
    # Wanted are 0.5, 1.05 and 1.6 s.
    assert frames.times == (0.5, 1.0, 1.5)
    assert frames.indices == (5, 10, 15)
    assert brightness(frames.pixels) == [1, 2, 3]
    assert frames.pixels.shape == (3, 32, 64, 3)
    assert frames.total_frames == 21
    assert probe(tmp_path / "v.frames.json").seconds == 2.0
    assert decode(replace(clip.spec, height=16, width=8)).pixels.shape == (3, 16, 8, 3)


def test_broken_lists_of_images_are_named(tmp_path):
    path = write_images(tmp_path, [0.0, 0.5, 1.0])
    spec = ClipSpec(video=str(path), num_frames=3)
    (tmp_path / "images/1.png").write_bytes((tmp_path / "images/1.png").read_bytes()[:40])
    with pytest.raises(VideoError, match=r"images/1\.png: image cannot be read"):
        decode(spec)
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(VideoError, match=r"images/1\.png: image cannot be read"):
        decode(spec)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images/1.png")
    with pytest.raises(VideoError, match=r"v\.frames\.json: its images differ in size"):
        decode(spec)
    path.write_text('{"root": "images", "fps": 10}')
    with pytest.raises(
        VideoError, match=r"v\.frames\.json: is not a list of images .*build the dataset again"
    ):
        decode(spec)
    path.write_text('{"root": "images", "fps": 10, "frames": []}')
    with pytest.raises(VideoError, match=r"lists no image"):
        decode(spec)
    path.write_bytes(b'{"root": "\xff", "fps": 10, "frames": [[0, "0.png"]]}')
    with pytest.raises(
        VideoError, match=r"v\.frames\.json: is not a list of images .*build the dataset again"
    ):
        decode(spec)


def png(*chunks: tuple[bytes, bytes], side: int = 8) -> bytes:
    """A black image; `chunks` stand between its header and its data."""
    data = zlib.compress(bytes(side * (1 + 3 * side)))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", data[:5]), *chunks]
    whole = b"\x89PNG\r\n\x1a\n"
    for name, content in [*parts, (b"IDAT", data[5:]), (b"IEND", b"")]:
        whole += struct.pack(">I", len(content)) + name + content
        whole += struct.pack(">I", zlib.crc32(name + content))
    return whole


@pytest.mark.parametrize(
    ("content", "header_is_good"),
    [
        (png((bytes(4), b"")), True),  # a name of zeros
        (png()[:-12] + b"\0\0\0\0gAMA\xd8\xb0\x92\xf3", True),
        (png(side=20), False),
        (None, False),
        (b"", False),
    ],
    ids=["chunk without a name", "chunk too short", "bomb", "missing", "empty"],
)
def test_damaged_images_are_named_by_decode_and_probe(tmp_path, monkeypatch, content, header_is_good):
    path = write_images(tmp_path, [0.0, 0.5], size=8)
    spec = ClipSpec(video=str(path), num_frames=2)
    assert probe(path).width == 16
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # half the size from which Pillow refuses
    image = tmp_path / "images/0.png"
    image.unlink()
    if content is not None:
        image.write_bytes(content)
    named = r"images/0\.png: image cannot be read \(.+\); restore it or drop its rows"
    with pytest.raises(VideoError, match=named):
        decode(spec)
    if not header_is_good:
        with pytest.raises(VideoError, match=named):
            probe(path)


FILL = """
import resource, sys
from pathlib import Path
from videostr.types import ClipSpec
from videostr.video import FrameStore, name_clip

clip = name_clip(ClipSpec(video=sys.argv[1], num_frames=2048, height=96, width=128), Path(sys.argv[1]).parent)
store = FrameStore(sys.argv[2])
held_kib = next(int(line.split()[1]) for line in open("/proc/self/status", encoding="utf-8") if "VmData" in line)
limit = held_kib * 1024 + 2048 * 96 * 128 * 3 // 2
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # memory of its own; pages of files do not count
frames = store.frames(clip)
print(frames.pixels.shape, int(frames.pixels[-1].max()), len(set(frames.times)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA")
def test_a_process_fills_the_store_with_a_long_clip_in_less_memory_than_the_clip_has(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(2048):
            image = np.full((48, 64, 3), 200 * (number == 2047), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    command = [sys.executable, "-c", FILL, str(path), str(tmp_path / "frames")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shape, brightest, times = re.fullmatch(r"\((.*)\) (\d+) (\d+)\n", done.stdout).groups()
    assert (shape, times) == ("2048, 96, 128, 3", "2048")
    assert int(brightest) > 150


@pytest.mark.parametrize("count", [5, 31])
def test_frames_are_sought_where_that_leaves_some_out_and_are_those_of_the_whole_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "25", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(1200):
            image = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    decoded = []
    plain = Video._decoded

    def counted(video: Video) -> Iterator[tuple[float, av.VideoFrame]]:
        for each in plain(video):
            decoded.append(each[0])
            yield each

    monkeypatch.setattr(Video, "_decoded", counted)
    sought = decode(ClipSpec(video=str(path), num_frames=count))
    # Keyframes lie 2.5 s apart: at most so much is decoded for each frame, and what follows it.
    assert len(decoded) <= count * 28
    decoded.clear()
    monkeypatch.setattr(Video, "_runs", lambda _, times: [times])
    whole = decode(ClipSpec(video=str(path), num_frames=count))
    assert len(decoded) >= 1199
    assert np.array_equal(sought.pixels, whole.pixels)
    assert replace(sought, pixels=whole.pixels) == whole
