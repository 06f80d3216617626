"""The golden cases: the first 1,000 test pictures, each as a PNG of its own."""

import base64
import struct
import zlib
from collections.abc import Iterator

import data

N_PICTURES = 1_000


def cases() -> Iterator[dict]:
    for i, (picture, label) in enumerate(data.split("test")[:N_PICTURES]):
        yield {
            "id": f"fashion-{i:04}",
            "input": {"image_base64": base64.b64encode(png(picture.numpy().tobytes())).decode()},
            "expected": data.LABELS[label],
            "slices": [f"label:{data.LABELS[label]}"],
        }


def png(pixels: bytes) -> bytes:
    """A grey PNG that is not compressed: the same bytes with every version of zlib."""
    rows = b"".join(b"\0" + pixels[start : start + data.SIZE] for start in range(0, len(pixels), data.SIZE))
    header = struct.pack(">IIBBBBB", data.SIZE, data.SIZE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
