"""Programs and packages in the Rust runtime, called with torch tensors, NumPy arrays or text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from . import _highroad, _pytree
from ._highroad import LoadError

__all__ = ["Classification", "LoadError", "Predictor", "Program", "Ranked", "load"]

# The runtime's dtype names and NumPy's; bf16 travels as its bits, because NumPy does not know it.
_NUMPY = {
    "bool": np.bool_,
    "u8": np.uint8,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "f16": np.float16,
    "bf16": np.uint16,
    "f32": np.float32,
    "f64": np.float64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _NUMPY.items() if name != "bf16"}


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Program | Predictor:
    """Open a program (``model.pt2``) or a package (a directory with ``manifest.json``, or ``sha256:…`` in the store).

    ``threads`` is how many threads one call may use, all cores by default; results do not depend on it.

    Raises:
        LoadError: the archive or package is damaged or not supported; ``error.missing_ops`` lists operators that
            a program uses and the runtime lacks.
        FileNotFoundError: there is nothing at ``path``.
    """
    n_threads = threads if threads is not None else os.cpu_count() or 1
    if n_threads < 1:
        raise ValueError(f"threads is {n_threads}: a call needs at least one")
    place = _in_store(str(path)) if str(path).startswith("sha256:") else Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no program or package at `{place}`")
    if place.is_dir():
        return Predictor(_highroad.Predictor.open(place, n_threads))
    return Program(_highroad.Program.open(place, n_threads))


class Program:
    """A ``.pt2`` program, called like the module it was exported from.

    Torch tensors in give torch tensors out, NumPy arrays give NumPy arrays; dictionaries, tuples and lists come back as the
    module returned them. Calls from several threads run at once.
    """

    def __init__(self, inner: _highroad.Program) -> None:
        self._inner = inner
        self._in_spec, self._out_spec = inner.in_spec(), inner.out_spec()
        self._arg_names, self._constants = inner.arg_names(), inner.constants()
        self._constant_results = inner.constant_results()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = _pytree.bind(args, kwargs, self._in_spec, self._arg_names)
        tensors = [leaf for leaf, constant in zip(leaves, self._constants, strict=True) if not _is(leaf, constant)]
        wants_torch = any(_is_torch(tensor) for tensor in tensors)
        outputs = self._inner.run([_to_runtime(tensor, i) for i, tensor in enumerate(tensors)])
        given = (_from_runtime(*output, wants_torch) for output in outputs)
        results = (next(given) if constant is None else constant[0] for constant in self._constant_results)
        return _pytree.unflatten(results, self._out_spec)

    def graph_text(self) -> str:
        """The program after all passes, as text; ``highroad inspect`` prints the same."""
        return self._inner.graph_text()

    def missing_ops(self) -> list[str]:
        """Operators without a kernel: none, for a program that loaded; ``load`` refuses the others and lists them."""
        return []

    @property
    def inputs(self) -> list[tuple[str, str]]:
        """Name and type of each tensor input, such as ``("input_ids", "i64[s0, s1]")``."""
        return [(name, text) for name, _, text in self._inner.inputs()]

    @property
    def outputs(self) -> list[tuple[str, str]]:
        """As ``inputs``, for what the program returns."""
        return [(name, text) for name, _, text in self._inner.outputs()]

    @property
    def numerics_id(self) -> str:
        """What decides the bits of a result besides program and inputs."""
        return self._inner.numerics_id()

    @property
    def row_independence(self) -> str:
        """Whether rows of a batch can influence each other, in words."""
        return self._inner.row_independence()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {text}" for name, text in self.inputs)
        return f"Program({inputs}) -> ({', '.join(text for _, text in self.outputs)})"


@dataclass(frozen=True)
class Classification:
    """What a classifier answers: the label with the highest score (of a multi-label one those that hold, with ``, `` between them), and every
    label's score."""

    label: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Ranked:
    """A document as a reranker sees it: its place among the documents given, and its relevance score, 0 to 1."""

    index: int
    score: float


class Predictor:
    """A package that answers text: a ``Classification``, or a vector as a NumPy array; or a reranker, which has ``rank``."""

    def __init__(self, inner: _highroad.Predictor) -> None:
        self._inner = inner
        self.manifest: dict[str, Any] = json.loads(inner.manifest())
        self.digest: str = inner.digest()

    @overload
    def __call__(self, texts: str, *, prompt_name: str | None = None) -> Classification | np.ndarray: ...
    @overload
    def __call__(self, texts: Sequence[str], *, prompt_name: str | None = None) -> list[Classification | np.ndarray]: ...
    def __call__(self, texts: str | Sequence[str], *, prompt_name: str | None = None) -> Any:
        """The answer to a text, or the answers to a list of texts in order; batching does not change any bit.

        ``prompt_name`` names the package's prompt that goes before each text; the package's default, if it has one, unless told.

        Raises:
            RuntimeError: the package has no prompt of this name, or cannot answer.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        answers = [self._answer(*one) for one in self._inner.predict(given, prompt_name)]
        return answers[0] if isinstance(texts, str) else answers

    def rank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """The documents by their relevance to ``query``, best first; equal ones in the order given. Of a reranker only."""
        return [Ranked(index, score) for index, score in self._inner.rank(query, list(documents))]

    def _answer(self, label: str | None, values: np.ndarray) -> Classification | np.ndarray:
        if label is None:
            return values
        task = self.manifest["task"]
        labels = task.get("labels") or task["items"]
        return Classification(label, dict(zip(labels, values.tolist(), strict=True)))

    def __repr__(self) -> str:
        return f"Predictor({self.manifest['name']}@{self.digest})"


def _in_store(digest: str) -> Path:
    return Path(os.environ.get("HIGHROAD_HOME", ".highroad"), "store", digest.removeprefix("sha256:"))


def _is(leaf: Any, constant: tuple[Any] | None) -> bool:
    """Whether ``leaf`` is the constant that export fixed; an error if it is another one."""
    if constant is None:
        return False
    if leaf != constant[0]:
        raise _pytree.TreeError(f"the program was exported with {constant[0]!r} here and cannot take {leaf!r}")
    return True


def _is_torch(value: Any) -> bool:
    # A caller that has a torch tensor has imported torch; nobody else should pay for it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _to_runtime(value: Any, position: int) -> tuple[str, list[int], np.ndarray]:
    name = None
    if _is_torch(value):
        import torch

        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            name, value = "bf16", value.view(torch.uint16)
        value = value.numpy()
    array = np.asarray(value)
    name = name or _NAMES.get(array.dtype)
    if name is None:
        raise _pytree.TreeError(f"tensor {position} is {array.dtype}, which the runtime does not know")
    return name, list(array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _from_runtime(name: str, sizes: list[int], data: np.ndarray, wants_torch: bool) -> Any:
    array = data.view(_NUMPY[name]).reshape(sizes)
    if not wants_torch:
        return array
    import torch

    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if name == "bf16" else tensor
