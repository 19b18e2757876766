"""PLY files as ScanNet has them: binary, little endian, vertices first.

In: the content of a file. Out: [N, 3] vertices.
"""

from __future__ import annotations

import re

import numpy as np

from videostr.data.scene import Array

_KINDS = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
_HEADER = re.compile(
    rb"ply\r?\nformat binary_little_endian 1\.0\r?\n(?:(?:comment|obj_info).*\n)*"
    rb"element vertex (\d{1,9})\r?\n((?:property \w+ \w+\s*\n)+)(?!property)(?:.*\n)*?end_header\r?\n"
)


def ply_vertices(data: bytes) -> Array:
    """Return the [N, 3] vertices of a file; its other elements are passed over.

    Raises:
        ValueError: the file is truncated, or its first element is not vertices with x, y, z.
    """
    header = _HEADER.match(data)
    fields = [] if header is None else [line.split()[1:] for line in header[2].decode().splitlines()]
    if header is None or not {"x", "y", "z"} <= {name for _, name in fields} or not int(header[1]):
        raise ValueError(
            "must be a PLY file, binary_little_endian, whose first element is vertices with x, y, z"
        )
    if unknown := [kind for kind, _ in fields if kind not in _KINDS]:
        raise ValueError(f"a vertex has a property of type {unknown[0]}; must be a number")
    layout = np.dtype(
        [(name, f"<{_KINDS[kind]}") for kind, name in fields]
    )  # a ValueError for two of one name
    vertices = np.frombuffer(
        data, layout, int(header[1]), header.end()
    )  # a ValueError where bytes are missing
    return np.stack([vertices[axis].astype(float) for axis in "xyz"], axis=1)
