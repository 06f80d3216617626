"""Training data: ``Loader`` reads, tokenises and batches in Rust.

Same files, arguments and seed give the same batches on every machine, with any number of threads, interrupted or not.
docs/reference/data-loader.md describes every argument.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import _highroad
from ._highroad import DataError

__all__ = ["BadRecord", "DataError", "Loader"]

COLUMN_TYPES = ("int64", "float32", "float64", "bool", "str")
#: More threads than this rarely help one process, and a machine often runs several.
MAX_DEFAULT_THREADS = 4


class BadRecord(NamedTuple):
    """A record that was left out: its file, the line or row where it begins (from 1), and why."""

    path: str
    line: int
    reason: str


class Loader:
    """An iterable over batches: one ``for`` loop gives what is left of the current epoch."""

    def __init__(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        format: str | None = None,
        text: str | tuple[str, str] | None = None,
        tokenizer: Any = None,
        max_length: int = 512,
        add_special_tokens: bool = True,
        columns: Mapping[str, str | Sequence[str]] | None = None,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        bucket: bool | None = None,
        pack: bool = False,
        block_mask: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: str = "split",
        on_bad: str = "fail",
        threads: int | None = None,
        prefetch: int = 4,
        pad_to_multiple_of: int = 1,
        output: str = "torch",
        cache_dir: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        if (text is None) != (tokenizer is None):
            raise ValueError("text and tokenizer belong together: give both or neither")
        if (batch_size is None) == (max_tokens is None):
            raise ValueError("give exactly one of batch_size and max_tokens")
        if text is None and (max_tokens is not None or bucket or pack):
            raise ValueError("max_tokens, bucket and pack count tokens: they need text and tokenizer")
        if pack and bucket:
            raise ValueError("pack fills rows to max_length, so there is nothing to bucket")
        if block_mask and not pack:
            raise ValueError("block_mask keeps packed documents apart: it needs pack=True")
        if pack and max_tokens is not None and max_tokens < max_length:
            raise ValueError(f"max_tokens={max_tokens} has no room for one packed row of max_length={max_length} tokens")
        _one_of("remainder", remainder, ("split", "drop", "uneven"))
        _one_of("on_bad", on_bad, ("fail", "skip"))
        _one_of("output", output, ("torch", "numpy"))
        rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of 0 to {world_size - 1}")
        tokenizer_json = _tokenizer_json(tokenizer)
        threads = min(_cores(), MAX_DEFAULT_THREADS) if threads is None else threads
        positive = {"batch_size": batch_size, "max_tokens": max_tokens, "max_length": max_length, "threads": threads}
        for name, value in (positive | {"prefetch": prefetch, "pad_to_multiple_of": pad_to_multiple_of}).items():
            if value is not None and not 0 < value < 2**31:
                raise ValueError(f"{name} is {value}, and must be a positive number")
        self._output = output
        self._request = {
            "files": [os.fspath(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)],
            "format": format,
            "text": [] if text is None else [text] if isinstance(text, str) else list(text),
            "tokenizer": tokenizer_json,
            "tokenizer_digest": _digest(tokenizer_json, max_length, add_special_tokens),
            "max_length": max_length,
            "add_special_tokens": add_special_tokens,
            "columns": [[name, _column_type(name, kind)] for name, kind in (columns or {}).items()],
            "batch_size": batch_size,
            "max_tokens": max_tokens,
            "bucket": (max_tokens is not None and not pack) if bucket is None else bucket,
            "pack": pack,
            "block_mask": block_mask,
            "seed": seed if shuffle else None,
            "rank": rank,
            "world_size": world_size,
            "remainder": remainder,
            "skip_bad": on_bad == "skip",
            "threads": threads,
            "prefetch": prefetch,
            "pad_to_multiple_of": pad_to_multiple_of,
            "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
            "storage_options": dict(storage_options or {}),
        }
        self._open()
        if self.n_bad:
            first = self.bad_records[0]
            warnings.warn(
                f"{self.n_bad} bad records were left out, the first is {first.path}:{first.line}: {first.reason}",
                stacklevel=2,
            )

    def _open(self) -> None:
        self._pid = os.getpid()
        self._loader = _highroad.Loader.open(json.dumps(self._request))

    def _here(self) -> _highroad.Loader:
        if os.getpid() != self._pid:
            raise RuntimeError("this loader's threads stayed in the parent process: open a Loader after the fork")
        return self._loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches that are left of the current epoch; afterwards ``epoch`` is the next one."""
        while (arrays := self._here().next()) is not None:
            yield arrays if self._output == "numpy" else _to_torch(arrays)

    def __len__(self) -> int:
        """Batches that this rank gets in the current epoch."""
        return self._here().n_batches()

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, from 0."""
        return self._here().epoch()

    @property
    def n_samples(self) -> int:
        """Good records, over all ranks."""
        return self._here().n_samples()

    @property
    def n_dropped(self) -> int:
        """Samples that no rank gets in the current epoch, with ``remainder="drop"``."""
        return self._here().n_dropped()

    @property
    def n_bad(self) -> int:
        """Records that were left out."""
        return self._here().n_bad()

    @property
    def bad_records(self) -> list[BadRecord]:
        """The first 1,000 of them."""
        return [BadRecord(*record) for record in self._here().bad_records()]

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands: plain values, small, at any time."""
        return json.loads(self._here().state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on behind the last batch that was given when ``state`` was taken, also on another world size."""
        self._here().restore(json.dumps(dict(state)))

    def fingerprint(self) -> dict[str, Any]:
        """Digest, rows, schema and label balance of the files, for the run record; reads them once more."""
        found = json.loads(self._here().fingerprint())
        digests = hashlib.sha256("\n".join(file["sha256"] for file in found["files"]).encode())
        return found | {"digest": f"sha256:{digests.hexdigest()}"}

    def __getstate__(self) -> dict[str, Any]:
        return {"request": self._request, "output": self._output, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._request, self._output = state["request"], state["output"]
        self._open()
        self.load_state_dict(state["state"])


def _to_torch(arrays: dict[str, Any]) -> dict[str, Any]:
    import torch  # noqa: PLC0415  Only those who ask for torch tensors need torch.

    return {name: torch.from_numpy(value) if hasattr(value, "dtype") else value for name, value in arrays.items()}


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, and must be one of {', '.join(choices)}")


def _column_type(name: str, kind: str | Sequence[str]) -> str | list[str]:
    if not isinstance(kind, str):
        return list(kind)
    if kind not in COLUMN_TYPES:
        raise ValueError(f"column {name!r} has type {kind!r}; types are {', '.join(COLUMN_TYPES)} or a list of class names")
    return kind


def _tokenizer_json(tokenizer: Any) -> str | None:
    """The text of ``tokenizer.json``: of a path, of a ``tokenizers.Tokenizer`` or of a fast tokenizer of transformers."""
    if tokenizer is None:
        return None
    if isinstance(tokenizer, (str, os.PathLike)):
        with open(tokenizer, encoding="utf-8") as file:
            return file.read()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise TypeError(f"{type(tokenizer).__name__} is no tokenizer with a tokenizer.json: use a fast tokenizer")
    return backend.to_str()


def _digest(tokenizer_json: str | None, max_length: int, add_special_tokens: bool) -> str:
    if tokenizer_json is None:
        return "none"
    digest = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    return f"sha256:{digest}, max_length {max_length}, special tokens {add_special_tokens}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
