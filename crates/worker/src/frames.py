# What every worker begins with: frames over stdin and stdout (see frame.rs), a length in eight little-endian bytes, then a safetensors file.

import ctypes
import json
import os
import signal
import struct
import sys
import threading
import time


def end_with_parent():
    """A process that computes does not see its pipes close, so the kernel ends it with the thread that started it; elsewhere it looks."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def look():
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, daemon=True).start()


def pipes():
    """Where questions come from and answers go; what libraries print must not get among the frames."""
    answers, questions = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)
    return questions, answers


def read_exactly(stream, n_bytes):
    content = stream.read(n_bytes)
    if len(content) != n_bytes:
        sys.exit(0)  # highroad has ended
    return content


def read_frame(stream):
    """The metadata, and of each tensor its dtype, shape and a view of its bytes, in the order of their names `0`, `1`, ..."""
    (length,) = struct.unpack("<Q", read_exactly(stream, 8))
    content = memoryview(read_exactly(stream, length))
    (header_length,) = struct.unpack("<Q", content[:8])
    header = json.loads(bytes(content[8 : 8 + header_length]))
    metadata = header.pop("__metadata__", None) or {}
    tensors = []
    for position in range(len(header)):
        entry = header[str(position)]
        begin, end = entry["data_offsets"]
        tensors.append((entry["dtype"], entry["shape"], content[8 + header_length + begin : 8 + header_length + end]))
    return metadata, tensors


def write_frame(stream, metadata, tensors=()):
    """`tensors` are dtype, shape and bytes of each."""
    header, end = {"__metadata__": metadata}, 0
    for position, (dtype, shape, data) in enumerate(tensors):
        begin, end = end, end + len(data)
        header[str(position)] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<QQ", 8 + len(text) + end, len(text)) + text)
    for _, _, data in tensors:
        stream.write(data)
    stream.flush()


