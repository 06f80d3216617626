"""Highroad: the paved road for PyTorch.

``highroad.export`` writes a trained module as a package source; ``highroad.load`` opens a program or a package in
the Rust runtime that also serves it. ``highroad.data`` reads training data, ``highroad.run`` tracks a run,
``highroad.standard`` is what highroad.toml declares. Only
``export`` and tensors of ``highroad.data`` need torch.
"""

from __future__ import annotations

from ._export import ExportError, export
from ._load import Classification, LoadError, Predictor, Program, Ranked, load
from ._run import Run, UndeliveredWarning, run, sync_runs
from ._standard import standard

__all__ = [
    *("Classification", "ExportError", "LoadError", "Predictor", "Program", "Ranked", "Run", "UndeliveredWarning"),
    *("export", "load", "run", "standard", "sync_runs"),
]
