"""The model as a run needs it: its average, spread over processes, its gradients clipped, with adapters."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ._job import Job


def average(model: nn.Module, decay: float, job: Job) -> AveragedModel | None:
    """An exponential moving average of the weights, updated after each step; ``None`` for a decay of 0.

    It copies the model, so it comes before ``distribute``; where that shards the model, the average is in the same shards.
    """
    if decay == 0.0:
        return None
    if not 0.0 < decay < 1.0:
        raise SystemExit(f"ema is {decay}: it is the share of the old average that stays, at least 0 and below 1")
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    if job.strategy == "fsdp2":
        averaged.module = distribute(averaged.module, job)
    return averaged


def distribute(model: nn.Module, job: Job) -> nn.Module:
    """``model`` as every process holds it: whole (`single`, `ddp`) or in shards (`fsdp2`).

    FSDP2 shards in place, each block of every ``nn.ModuleList`` by itself, so that only one block is whole at a time.
    """
    if job.strategy == "ddp":
        return DistributedDataParallel(model, device_ids=[job.device] if job.device.type == "cuda" else None)
    if job.strategy == "fsdp2":
        mesh = init_device_mesh(job.device.type, (job.world,))
        for part in list(model.modules()):
            if isinstance(part, nn.ModuleList):
                for block in part:
                    fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def syncing(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Processes exchange gradients in the ``last`` backward pass of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def clip(model: nn.Module, limit: float) -> float:
    """Scales the gradients so that their norm over all weights and processes is at most ``limit``; what it was."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit or math.inf)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def cosine(n_steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate by step: linear up to 1 in the first ``warmup`` of all steps, then half a cosine to 0."""

    def factor(step: int) -> float:
        progress = step / n_steps
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))

    return factor


def lora(model: nn.Module, rank: int, targets: Sequence[str]) -> nn.Module:
    """``model`` with all weights fixed and low-rank adapters (`peft`) to train in the layers named ``targets``.

    ``rank`` 0 leaves the model as it is. ``highroad.training.full_weights`` folds the adapters in.
    """
    if rank == 0:
        return model
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SystemExit("lora_rank needs the package `peft`: add it to requirements.in and lock again") from error
    return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)), model)
