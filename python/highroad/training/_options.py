"""The options of a training script: `[training]` of highroad.toml gives their names, types and defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .._standard import standard

# What a loop needs and a highroad.toml may leave out.
DEFAULTS: dict[str, Any] = {
    "seed": 7,
    "precision": "auto",
    "strategy": "auto",
    "deterministic": True,
    "batch_size": 32,
    "micro_batch": 0,
    "epochs": 1,
    "max_steps": 0,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "warmup": 0.1,
    "clip_norm": 1.0,
    "ema": 0.0,
    "evals_per_epoch": 3,
    "patience": 3,
    "checkpoint_every": 100,
    "keep_best": 1,
    "log_every": 10,
    "output": "runs/latest",
}
CHOICES = {"precision": ("auto", "f32", "bf16", "fp16"), "strategy": ("auto", "single", "ddp", "fsdp2")}
# Keys of [training] that `highroad train` reads itself.
_NOT_OPTIONS = ("script",)


def options(description: str | None = None, args: Sequence[str] | None = None) -> argparse.Namespace:
    """Every key of `[training]` in ./highroad.toml as an option with that default, besides `--resume` and the profile's.

    ``args`` is the command line, the process's own by default. A wrong option ends the process with code 2.
    """
    declared = standard()["training"]
    defaults = DEFAULTS | {name: value for name, value in declared.items() if name not in _NOT_OPTIONS}
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="measure N steps and stop; see `highroad profile-train`")
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    for name, default in defaults.items():
        kind = _boolean if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name}", type=kind, default=default, choices=CHOICES.get(name))
    parsed = parser.parse_args(args)
    for name in ("batch_size", "epochs", "evals_per_epoch", "checkpoint_every", "log_every", "keep_best"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name} is {getattr(parsed, name)}: it needs at least 1")
    return parsed


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"`{text}` is neither true nor false")
    return text == "true"
