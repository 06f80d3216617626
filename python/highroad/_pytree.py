"""Arguments to leaves and leaves to results, as the exported module's `forward` had them.

A specification is the nested tuple the runtime gives: ``("leaf",)``, ``("none",)``, ``("tuple", [spec, …])``,
``("list", [spec, …])``, ``("dict", [(key, spec), …])`` and ``("named", type name, [(field, spec), …])``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any


class TreeError(TypeError):
    """The arguments have another structure than the program was exported with."""


class Named(SimpleNamespace):
    """A named tuple, dataclass or model output: fields as attributes, and by name or position like one."""

    def __getitem__(self, key: str | int) -> Any:
        return vars(self)[key] if isinstance(key, str) else list(vars(self).values())[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(vars(self).values())

    def __len__(self) -> int:
        return len(vars(self))


def flatten(value: Any, spec: tuple, where: str) -> list[Any]:
    """The leaves of ``value`` in the order of ``spec``; errors name the place as ``where``."""
    kind = spec[0]
    if kind == "leaf":
        return [value]
    if kind == "none":
        if value is not None:
            raise TreeError(f"{where} must be None: the program was exported without it")
        return []
    if kind in ("tuple", "list"):
        if not isinstance(value, tuple | list) or len(value) != len(spec[1]):
            raise TreeError(f"{where} must be a {kind} of {len(spec[1])}, not {_describe(value)}")
        return [leaf for i, part in enumerate(spec[1]) for leaf in flatten(value[i], part, f"{where}[{i}]")]
    fields = spec[-1]
    parts = value if isinstance(value, Mapping) else {key: getattr(value, key, None) for key, _ in fields}
    unknown, missing = parts.keys() - dict(fields).keys(), dict(fields).keys() - parts.keys()
    if unknown or missing:
        raise TreeError(f"{where} must have the keys {[key for key, _ in fields]}, not {sorted(map(str, parts))}")
    return [leaf for key, part in fields for leaf in flatten(parts[key], part, f"{where}[{key!r}]")]


def unflatten(leaves: Iterator[Any], spec: tuple) -> Any:
    """The value of ``spec`` built from ``leaves``."""
    kind = spec[0]
    if kind == "leaf":
        return next(leaves)
    if kind == "none":
        return None
    if kind in ("tuple", "list"):
        parts = [unflatten(leaves, part) for part in spec[1]]
        return tuple(parts) if kind == "tuple" else parts
    fields = {key: unflatten(leaves, part) for key, part in spec[-1]}
    return fields if kind == "dict" else Named(**fields)


def bind(args: tuple, kwargs: dict[str, Any], spec: tuple, names: list[str]) -> list[Any]:
    """The leaves of a call.

    ``spec`` is a tuple of the positional arguments' tuple and the keyword arguments' dictionary, ``names`` the names
    of the positional parameters, which may be given by keyword like those of any Python function.
    """
    positional, keywords = spec[1]
    n_positional = len(positional[1])
    kwargs = dict(kwargs)
    for name in names[len(args) : n_positional]:
        if name not in kwargs:
            break
        args += (kwargs.pop(name),)
    if len(args) != n_positional:
        expected = f"{n_positional} positional arguments" + (f" ({', '.join(names)})" if names else "")
        raise TreeError(f"the program takes {expected}, and {len(args)} are given")
    return flatten(args, positional, "args") + flatten(kwargs, keywords, "kwargs")


def _describe(value: Any) -> str:
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__
