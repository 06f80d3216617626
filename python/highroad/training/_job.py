"""One process of a run: where it computes, which examples are its share, what all processes agree on."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# cuBLAS repeats its results only with a fixed workspace, and reads this when torch starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
import torch.distributed as dist

# Apart by primes, so that no (seed, step, rank) of a run shares its random numbers with a neighbour's.
_STEP_STRIDE, _RANK_STRIDE, _MAX_SEED = 1_000_003, 7_919, 2**31 - 1


@dataclass
class Job:
    """One process of a run. ``start`` makes it."""

    device: torch.device
    rank: int
    world: int
    strategy: str
    dtype: torch.dtype
    _signals: list[int] = field(default_factory=list)
    _endings: list[Callable[[], None]] = field(default_factory=list)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints and writes for all."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix products in the run's precision; the weights stay float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16's small gradients from vanishing; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def seed_step(self, seed: int, step: int) -> None:
        """All random numbers of a step follow from seed, step and rank: a resumed run draws what it would have drawn."""
        seed_everything((seed + step * _STEP_STRIDE + self.rank * _RANK_STRIDE) % _MAX_SEED)

    def shares(self, batch: Sequence[Any], micro_batch: int) -> Iterator[tuple[Sequence[Any], float, bool]]:
        """This process's part of a global batch: ``(examples, weight, last)`` of at most ``micro_batch`` examples (0: any).

        The weights make the sum of mean losses, averaged over processes, the mean loss of the global batch, however
        it divides. Every process gets as many parts as any other, so that none waits for one that has finished.
        """
        own = batch[self.rank :: self.world]
        largest = -(-len(batch) // self.world)
        size = micro_batch or largest
        n_parts = -(-largest // size)
        for i in range(n_parts):
            part = own[i * size : (i + 1) * size]
            weight = len(part) * self.world / len(batch)
            # A process without examples left computes one anyway, for nothing, to meet the others.
            yield part or batch[:1], weight, i == n_parts - 1

    def to_device(self, tensors: Any) -> Any:
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(self.device, non_blocking=True), tensors)

    def stop_signal(self) -> int:
        """The signal that asks this run to stop, the same answer in every process; 0 if there is none."""
        return int(self.agree(float(self._signals[0] if self._signals else 0), dist.ReduceOp.MAX))

    def at_end(self, ending: Callable[[], None]) -> None:
        """Calls ``ending`` when the training ends, however it does."""
        self._endings.append(ending)

    def agree(self, value: float, how: dist.ReduceOp = dist.ReduceOp.AVG) -> float:
        """``value`` combined over all processes, by default their mean."""
        if self.world == 1:
            return value
        # gloo has no AVG.
        average = how == dist.ReduceOp.AVG
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.SUM if average else how)
        return tensor.item() / (self.world if average else 1)

    def from_leader(self, value: float) -> float:
        """What the leading process says, in every process: decisions must not differ by a rounding."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tensor.item()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def start(options: argparse.Namespace) -> Iterator[Job]:
    """Joins the processes that torchrun started, seeds and fixes what can vary, and notes SIGTERM and SIGINT.

    A signal stops nothing by itself: the loop asks ``Job.stop_signal`` at each step boundary. Errors end the process
    with one sentence.
    """
    world, rank, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
    accelerator = torch.cuda.is_available()
    device = torch.device("cuda", local) if accelerator else torch.device("cpu")
    if accelerator:
        torch.cuda.set_device(device)
    strategy = _strategy(options.strategy, world)
    seed_everything(options.seed)
    torch.use_deterministic_algorithms(options.deterministic)
    torch.backends.cudnn.benchmark = not options.deterministic
    job = Job(device, rank, world, strategy, _dtype(options.precision, device))
    previous = {number: signal.signal(number, lambda n, _: job._signals.append(n)) for number in _STOPS}
    if strategy != "single":
        dist.init_process_group("nccl" if accelerator else "gloo")
    try:
        yield job
    finally:
        for ending in job._endings:
            ending()
        if strategy != "single":
            dist.destroy_process_group()
        for number, handler in previous.items():
            signal.signal(number, handler)


_TORCHRUN = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
_STOPS = (signal.SIGTERM, signal.SIGINT)


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's random numbers, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def global_batches(
    examples: Sequence[Any],
    size: int,
    batches: Callable[[Sequence[Any], int, torch.Generator], Sequence[Sequence[Any]]],
    seed: int,
    first_step: int,
) -> Iterator[Sequence[Any]]:
    """The batches of step ``first_step``, ``first_step + 1``, … without end.

    The order depends on seed and epoch alone, not on processes: a resumed run meets exactly the batches it had not met,
    on any number of processes. ``batches`` cuts an epoch into ``ceil(len(examples) / size)`` batches.
    """
    epoch, first = divmod(first_step, -(-len(examples) // size))
    while True:
        order = torch.Generator().manual_seed(seed * 1_000 + epoch)
        yield from batches(examples, size, order)[first:]
        epoch, first = epoch + 1, 0


def _strategy(asked: str, world: int) -> str:
    strategy = asked if asked != "auto" else "ddp" if world > 1 else "single"
    if strategy == "single" and world > 1:
        raise SystemExit(f"strategy `single` is one process, and {world} were started: say `ddp` or `fsdp2`")
    # Sharding over one process is no sharding; the same checkpoint goes on in one process or many.
    return "single" if world == 1 else strategy


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.bfloat16 if _has_fast_bf16(device) else torch.float32
    return {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
