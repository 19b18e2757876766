"""Sources of annotated video, one module each: its true format -> `videostr.data.scene.Scene`.

To add one: a module with a subclass of `videostr.data.source.Source`, an entry here, and tests on files in the true format.
"""

from videostr.data.source import Source
from videostr.data.sources.jsonl import Jsonl
from videostr.data.sources.kitti import Kitti
from videostr.data.sources.nuscenes import NuScenes
from videostr.data.sources.scannet import ScanNet
from videostr.data.sources.tao import Tao

SOURCES: dict[str, type[Source]] = {source.name: source for source in (Kitti, ScanNet, Tao, NuScenes, Jsonl)}
