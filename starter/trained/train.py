"""Train the model. `highroad train` starts this under torchrun and tracks it; read it from the top.

What is this repo's own is in data.py (examples, batches), model.py (network, loss) and judge.py (validation). What every run
needs is in `highroad.training`, one small function each.
"""

import itertools
import math
from pathlib import Path

from highroad import training

import torch
from torch.optim.lr_scheduler import LambdaLR

import data
import judge
import model as models


def main() -> None:
    options = training.options(__doc__)
    Path(options.output).mkdir(parents=True, exist_ok=True)
    with training.start(options) as job:
        train(options, job)


def train(options, job: training.Job) -> None:
    examples, validation = data.examples("train", options), data.examples("validation", options)
    steps_per_epoch = math.ceil(len(examples) / options.batch_size)
    n_steps = options.epochs * steps_per_epoch
    last_step = min(n_steps, options.max_steps or n_steps)
    eval_every = math.ceil(steps_per_epoch / options.evals_per_epoch)

    model = models.pretrained(options).to(job.device)
    average = training.average(model, options.ema, job)
    model = training.distribute(model, job)
    if options.compile:
        model.compile()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
    schedule = LambdaLR(optimizer, training.cosine(n_steps, options.warmup))
    scaler = job.scaler()
    checkpoints = training.Checkpoints(options, job, model, optimizer, schedule, scaler, average)
    progress = checkpoints.restore() if options.resume else training.Progress()
    log, parts = training.Log(options, job, last_step), training.Parts(options, job)
    weights = Path(options.output, "model.safetensors")

    batches = training.global_batches(examples, options.batch_size, data.batches, options.seed, progress.step)
    n_left = 0 if progress.stale >= options.patience else last_step - progress.step
    splits = {"train": examples, "validation": validation}
    with log.run(progress.step, progress.run_id, data.files(), splits) as progress.run_id:
        for batch in itertools.islice(batches, n_left):
            rate = schedule.get_last_lr()[0]
            loss, norm = step(model, optimizer, scaler, batch, progress.step, options, job, parts)
            schedule.step()
            if average is not None:
                average.update_parameters(model.module if job.strategy == "ddp" else model)
            progress.step += 1
            parts.end_step()
            if progress.step % options.log_every == 0 or progress.step == last_step:
                log({"train/loss": loss, "train/grad_norm": norm, "train/learning_rate": rate}, progress.step)

            judged = None
            if progress.step % eval_every == 0 or progress.step == last_step:
                judged = evaluate(average.module if average else model, validation, progress, log, job, weights)
            done = progress.step == last_step or progress.stale >= options.patience
            stop = job.stop_signal()
            if done or stop or progress.step % options.checkpoint_every == 0 or checkpoints.among_best(progress, judged):
                checkpoints.save(progress, judged)
            if done:
                break
            if stop:
                raise SystemExit(stopped(stop, progress.step, job))
        if job.leads:
            log(judge.finish(weights, validation, options), progress.step)


def step(model, optimizer, scaler, batch, number, options, job, parts) -> tuple[float, float]:
    """One optimizer step on a global batch, in as many parts as processes and memory ask for; loss and gradient norm."""
    job.seed_step(options.seed, number)
    model.train()
    optimizer.zero_grad()
    total = 0.0
    for share, weight, last in job.shares(batch, options.micro_batch):
        with parts("data"):
            inputs = job.to_device(data.collate(share))
        with training.syncing(model, last):
            with parts("forward"), job.autocast():
                loss = models.loss(model, inputs) * weight
            with parts("backward"):
                scaler.scale(loss).backward()
        total += loss.item()
    with parts("optimizer"):
        scaler.unscale_(optimizer)
        norm = training.clip(model, options.clip_norm)
        scaler.step(optimizer)
        scaler.update()
    total = job.agree(total)
    if not math.isfinite(total):
        raise SystemExit(f"the loss is {total} at step {number}: lower learning_rate, or look at the data")
    return total, norm


def evaluate(model, validation, progress, log, job, weights: Path) -> float:
    """The loss on the validation split, the same in every process; the weights are kept if it is the lowest so far."""
    model.eval()
    with torch.no_grad(), job.autocast():
        metrics = judge.judge(model, validation, job)
    log({f"validation/{name}": value for name, value in metrics.items()}, progress.step)
    loss = job.from_leader(metrics["loss"])
    if progress.judged(loss):
        best = training.full_weights(model)
        if job.leads:
            training.save_weights(best, weights)
    return loss


def stopped(signal: int, at_step: int, job: training.Job) -> int:
    """Says where the run stopped; the exit code that shells give a process that ``signal`` ended."""
    if job.leads:
        print(f"stopped by signal {signal} at step {at_step}: `highroad train --resume` goes on from there", flush=True)
    return 128 + signal


if __name__ == "__main__":
    main()
