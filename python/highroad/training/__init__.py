"""What every training loop needs, as small functions over torch's own parts. The loop itself is the repo's: `train.py`.

* ``options``, ``start``: the defaults of highroad.toml, the process group, seeds and determinism.
* ``Job``: one process of a run: its device, its share of each batch, what all processes agree on.
* ``average``, ``distribute``, ``lora``: weights as an average, over processes, as low-rank adapters.
* ``Checkpoints``: complete or absent, resumable on another number of processes, never unpickled.
* ``Log``: metrics on the screen, in a file and in the tracked run.
* ``Parts``: where a step's time goes; ``highroad profile-train`` reads it.

Needs torch >= 2.9; nothing else in ``highroad`` imports this package.
"""

from __future__ import annotations

from ._checkpoints import Checkpoints, Progress, full_weights, load_weights, save_weights
from ._job import Job, global_batches, start
from ._log import Log
from ._model import average, clip, cosine, distribute, lora, syncing
from .._options import options
from ._profile import Parts

__all__ = [
    "Checkpoints",
    "Job",
    "Log",
    "Parts",
    "Progress",
    "average",
    "clip",
    "cosine",
    "distribute",
    "full_weights",
    "global_batches",
    "load_weights",
    "lora",
    "options",
    "save_weights",
    "start",
    "syncing",
]
