"""Highroad: the paved road for PyTorch.

``highroad.export`` writes a trained module as a package source; ``highroad.load`` opens a program or a package in
the Rust runtime that also serves it. Only ``export`` needs torch.
"""

from __future__ import annotations

from ._export import ExportError, export
from ._load import Classification, LoadError, Predictor, Program, load

__all__ = ["Classification", "ExportError", "LoadError", "Predictor", "Program", "export", "load"]
