"""Checkpoints: complete or absent, in safetensors and JSON, readable on any number of processes.

``torch.distributed.checkpoint`` moves the tensors: each process writes its share, and reads what it needs of a checkpoint that
any number of processes wrote. Its own file format keeps an index that has to be unpickled, so its safetensors format is used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from .._options import PREFIX, STATE, OptionError, check_resumed, complete, fixed
from ._job import Job

_PARTIAL = ".partial-"


@dataclass
class Progress:
    """Where a run is; with the tensors it is the checkpoint."""

    step: int = 0
    # Lowest validation loss so far, and the number of evaluations since.
    best: float | None = None
    stale: int = 0
    run_id: str | None = None
    # Where the data stands, for a loop over a ``highroad.data.Loader``: its ``state_dict()``.
    data: dict[str, Any] | None = None
    # Validation loss by step, of the evaluations whose checkpoints are the best so far.
    kept: dict[str, float] = field(default_factory=dict)

    def judged(self, loss: float) -> bool:
        """Notes an evaluation; whether it is the best so far."""
        if self.best is not None and not loss < self.best:
            self.stale += 1
            return False
        self.best, self.stale = loss, 0
        return True


class Checkpoints:
    """The checkpoints in ``output/checkpoints``: the last one and the ``keep_best`` of lowest validation loss."""

    def __init__(
        self,
        options: argparse.Namespace,
        job: Job,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LambdaLR,
        scaler: torch.amp.GradScaler,
        average: AveragedModel | None,
    ) -> None:
        self._folder = Path(options.output, "checkpoints")
        self._keep = options.keep_best
        self._job = job
        self._model, self._optimizer, self._average = model, optimizer, average
        self._plain = {"schedule": schedule, "scaler": scaler}
        self._fixed = fixed(options)

    def among_best(self, progress: Progress, loss: float | None) -> bool:
        """Whether a validation loss (``None``: not judged) is one of the ``keep_best`` lowest so far."""
        return loss is not None and (len(progress.kept) < self._keep or loss < max(progress.kept.values()))

    def save(self, progress: Progress, loss: float | None = None) -> None:
        """Writes the checkpoint of ``progress.step``, then removes those that are neither last nor among the best.

        ``loss`` is the validation loss at this step, if it was judged. The files are on the disk before their folder
        gets its name, so a process that dies at any point leaves the earlier checkpoints, and no half of this one.
        """
        if loss is not None:
            best = sorted((progress.kept | {str(progress.step): loss}).items(), key=lambda item: item[1])
            progress.kept = dict(best[: self._keep])
        partial, final = (self._folder / f"{prefix}{progress.step:08}" for prefix in (_PARTIAL, PREFIX))
        if self._job.leads:
            for leftover in self._folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        self._job.wait()
        tensors, plain = self._state()
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        with _one_process_is_meant():
            dcp.save(tensors, storage_writer=writer, no_dist=self._job.world == 1)
        self._job.wait()
        if self._job.leads:
            state = {"progress": asdict(progress), "fixed": self._fixed, "world": self._job.world, "plain": plain}
            _write_synced(partial / STATE, json.dumps(state).encode())
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            _sync_folder(self._folder)
            self._prune(progress)
        self._job.wait()

    def restore(self) -> Progress:
        """Puts weights, optimizer, schedule, scaler and average where the newest complete checkpoint left them.

        Ends the process with one sentence if there is none, or if the run it belongs to was started with other options.
        """
        found = complete(self._folder)
        if not found:
            raise SystemExit(f"nothing to resume: no checkpoint in {self._folder}")
        state = json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
        try:
            check_resumed(found[-1], state, self._fixed)
        except OptionError as error:
            raise SystemExit(str(error)) from None
        tensors, plain = self._state()
        with _one_process_is_meant():
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(found[-1])), no_dist=self._job.world == 1)
        self._put(tensors, plain | state["plain"])
        if self._job.leads and state["world"] != self._job.world:
            print(f"resumed on {self._job.world} processes, saved on {state['world']}: the same batches in other shares")
        return Progress(**state["progress"])

    def _state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything as tensors by name, and the rest, which JSON holds to the last bit."""
        optimizer = get_optimizer_state_dict(self._model, self._optimizer, options=_FLAT)
        everything = {f"model/{name}": value for name, value in get_model_state_dict(self._model).items()}
        everything |= {f"optimizer/{name}": value for name, value in optimizer.items()}
        if self._average is not None:
            everything |= {f"average/{name}": value for name, value in get_model_state_dict(self._average.module).items()}
            everything["averaged"] = self._average.n_averaged
        tensors = {name: value for name, value in everything.items() if isinstance(value, torch.Tensor)}
        plain = {name: value for name, value in everything.items() if name not in tensors}
        for name, part in self._plain.items():
            # A function of the schedule comes as None: it is code.
            plain[name] = part.state_dict()
        return tensors, plain

    def _put(self, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
        for name, part in self._plain.items():
            part.load_state_dict(plain.pop(name))
        values = tensors | plain
        set_model_state_dict(self._model, _below("model/", values))
        set_optimizer_state_dict(self._model, self._optimizer, _below("optimizer/", values), options=_FLAT)
        if self._average is not None:
            set_model_state_dict(self._average.module, _below("average/", values))
            self._average.n_averaged.copy_(values["averaged"])

    def _prune(self, progress: Progress) -> None:
        for folder in complete(self._folder)[:-1]:
            if str(int(folder.name.removeprefix(PREFIX))) not in progress.kept:
                shutil.rmtree(folder)


_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@contextlib.contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Without a process group torch warns that it assumes a single process, also where that was said."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights on the CPU, gathered from every process, adapters folded in; every process must call it.

    Only the leading process gets them where the model is sharded; names are those of the model before ``distribute``.
    """
    return _folded(get_model_state_dict(model, options=_WHOLE), model)


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file; a reader sees the old one or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    # Tied weights are stored each by its name; safetensors refuses tensors that share memory.
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """``model`` with the weights that ``save_weights`` wrote, in evaluation mode."""
    model.load_state_dict(load_file(path))
    return model.eval()


def _folded(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights as the model without adapters names them, each adapter added to the weight it adapts."""
    scales = {name: part.scaling["default"] for name, part in model.named_modules() if hasattr(part, "lora_A")}
    folded = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    for name, scale in scales.items():
        name = name.removeprefix("module.")
        if f"{name}.lora_A.default.weight" in weights:
            down, up = (weights[f"{name}.lora_{side}.default.weight"] for side in "AB")
            folded[f"{name}.weight"] = folded[f"{name}.weight"] + scale * (up @ down)
    return folded


def _below(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Puts the names in ``folder`` on the disk, as fsync puts a file's content there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
