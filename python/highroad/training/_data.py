"""What a run says about the examples it reads: in the shape of ``highroad.data.Loader.fingerprint``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

# A number with more values than these is no label.
MAX_LABELS = 100


def fingerprint(examples: Sequence[Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Digest, number of rows, schema and label balance of ``examples``, which were made from ``files`` (digests by name).

    An example is a tuple of fields or one field. The balance counts each field that holds one of at most 100 whole numbers.
    """
    hasher = hashlib.sha256()
    for example in examples:
        hasher.update(_content(example))
    fields = {name: [_fields(example)[name] for example in examples] for name in _fields(examples[0])} if examples else {}
    counts = {name: Counter(values) for name, values in fields.items() if all(type(value) is int for value in values)}
    return {
        "digest": f"sha256:{hasher.hexdigest()}",
        "rows": len(examples),
        "schema": {name: _kind(values[0]) for name, values in fields.items()},
        "balance": {name: dict(sorted(count.items())) for name, count in counts.items() if len(count) <= MAX_LABELS},
        "files": [{"path": name, "sha256": digest} for name, digest in files.items()],
    }


def _fields(example: Any) -> dict[str, Any]:
    if not isinstance(example, tuple):
        return {"0": example}
    names = getattr(example, "_fields", map(str, range(len(example))))
    return dict(zip(names, example, strict=True))


def _content(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return _kind(value).encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, tuple):
        return b"(" + b",".join(map(_content, value)) + b")"
    return repr(value).encode()


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list):
        return f"list[{_kind(value[0])}]" if value else "list"
    return type(value).__name__
