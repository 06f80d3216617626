"""Fine-tune the classifier. `highroad train` starts this under torchrun and tracks it; read it from the top."""

import argparse
import math
import os
import random
import signal
import tomllib
from pathlib import Path

# cuBLAS repeats its results only with a fixed workspace, and reads this when torch starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch.nn.functional import cross_entropy

import data
import model as models
import record
import threshold

STANDARD = tomllib.loads(Path("highroad.toml").read_text(encoding="utf-8"))


def main() -> None:
    options = parse_options()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_deterministic(options.seed)

    tokenizer = models.tokenizer(STANDARD["packaging"]["max_tokens"])
    train = data.encode(data.split("train"), tokenizer)
    train = random.Random(options.seed).sample(train, round(len(train) * options.fraction))
    validation = data.encode(data.split("validation"), tokenizer)

    model = models.pretrained(len(data.LABELS)).to(device)
    # Words that the data lacks keep the meaning they came with, beside the words it has.
    model.encoder.embeddings.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=options.weight_decay, fused=True)
    steps_per_epoch = math.ceil(len(train) / options.batch_size)
    n_steps = options.epochs * steps_per_epoch
    eval_every = math.ceil(steps_per_epoch / options.evals_per_epoch)

    # All that a run is at a step; together with the weights it is the checkpoint.
    state = {"step": 0, "best": math.inf, "stale": 0, "losses": [], "run_id": None}
    checkpoint = output / "checkpoint.pt"
    if options.resume:
        state = record.restore(checkpoint, model, optimizer)
    last_step = min(n_steps, options.max_steps or n_steps)

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append("SIGTERM"))
    with record.track(vars(options), state):
        while state["step"] < last_step and state["stale"] < options.patience and not stop:
            epoch, first = divmod(state["step"], steps_per_epoch)
            # The order depends on seed and epoch alone, so a resumed run meets the batches it had not met.
            order = torch.Generator().manual_seed(options.seed * 1_000 + epoch)
            for batch in data.batches(train, options.batch_size, order)[first:]:
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * schedule(state["step"] / n_steps, options.warmup)
                loss, norm = train_step(model, optimizer, batch, options.clip_norm, device)
                state["step"] += 1
                state["losses"].append(loss)
                if state["step"] % 10 == 0 or state["step"] == last_step:
                    rate = optimizer.param_groups[0]["lr"]
                    record.log({"train/loss": loss, "train/grad_norm": norm, "train/learning_rate": rate}, state, last_step)
                if state["step"] % eval_every == 0 or state["step"] == last_step:
                    judge(model, validation, state, output, last_step, device)
                done = state["step"] == last_step or state["stale"] >= options.patience
                if state["step"] % options.checkpoint_every == 0 or done or stop:
                    record.save(checkpoint, model, optimizer, state)
                if done or stop:
                    break
        if not stop:
            shift = threshold.choose(output / "model.safetensors", validation, options.min_recall)
            record.log({"validation/shift": shift}, state, last_step)
    if stop:
        raise SystemExit(f"stopped by {stop[0]} at step {state['step']}: `highroad train --resume` goes on from there")


def train_step(model, optimizer, batch, clip_norm, device) -> tuple[float, float]:
    input_ids, attention_mask, labels = (tensor.to(device) for tensor in data.collate(batch))
    model.train()
    with autocast(device):
        loss = cross_entropy(model(input_ids, attention_mask), labels)
    if not torch.isfinite(loss):
        raise SystemExit(f"the loss is {loss.item()}: lower learning_rate, or look at the data")
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item(), norm.item()


def judge(model, validation, state, output, last_step, device) -> None:
    """Log loss and accuracy on the validation split; keep the weights if the loss is the lowest so far."""
    model.eval()
    loss, n_right = 0.0, 0
    with torch.no_grad(), autocast(device):
        for batch in data.batches(validation, 128, torch.Generator().manual_seed(0)):
            input_ids, attention_mask, labels = (tensor.to(device) for tensor in data.collate(batch))
            logits = model(input_ids, attention_mask).float()
            loss += cross_entropy(logits, labels, reduction="sum").item()
            n_right += int((logits.argmax(1) == labels).sum())
    loss /= len(validation)
    record.log({"validation/loss": loss, "validation/accuracy": n_right / len(validation)}, state, last_step)
    if loss < state["best"]:
        state["best"], state["stale"] = loss, 0
        models.save(model, output / "model.safetensors")
    else:
        state["stale"] += 1


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate: linear up to 1 during warm-up, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def autocast(device):
    """bf16 where the hardware multiplies it faster than f32; the weights stay f32."""
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=gains)


def make_deterministic(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def parse_options() -> argparse.Namespace:
    """The defaults of `[training]` in highroad.toml, each of them an option."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output")
    for name, default in STANDARD["training"].items():
        if name != "script":
            parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parser.error("this loop trains in one process: start it with `--nproc-per-node 1`")
    if options.resume and not Path(options.output, "checkpoint.pt").is_file():
        parser.error(f"nothing to resume: no checkpoint.pt in {options.output}")
    return options


if __name__ == "__main__":
    main()
