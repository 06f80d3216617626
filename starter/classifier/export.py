"""Export the trained model as a package source. `highroad export` starts this, then packs and proves the result."""

import argparse
import json
import tomllib
from pathlib import Path

import highroad

import data
import model as models

STANDARD = tomllib.loads(Path("highroad.toml").read_text(encoding="utf-8"))


def main() -> None:
    training, packaging = STANDARD["training"], STANDARD["packaging"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path(training["output"]), help="what training wrote")
    parser.add_argument("--path", type=Path, default=Path("runs/package"), help="package source to write")
    options = parser.parse_args()

    tokenizer = models.tokenizer(packaging["max_tokens"])
    cases = parity_cases(tokenizer)
    highroad.export(
        models.load(options.weights / "model.safetensors", len(data.LABELS)),
        cases[-1],
        options.path,
        name=STANDARD["model"]["name"],
        task="classify",
        labels=data.LABELS,
        flagged=data.FLAGGED,
        tokenizer=tokenizer,
        max_tokens=packaging["max_tokens"],
        parity_inputs=cases,
        relative_rms=packaging["relative_rms"],
        licence=STANDARD["model"]["licence"],
        owner=STANDARD["model"]["owner"],
        data=data.files(),
        lock=STANDARD["environment"]["lock"],
        notices=[models.ENCODER / "LICENSE", models.ENCODER / "NOTICE"],
    )


def parity_cases(tokenizer):
    """Inputs the runtime must answer as PyTorch does: one text, the longest input, a padded batch of mixed lengths."""
    lines = Path("golden/must_pass.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["input"]["text"] for line in lines]
    one, longest, mixed = texts[:1], [" ".join(texts * 20)], texts[:8]
    return [
        data.collate(data.encode([(text, 0) for text in group], tokenizer))[:2] for group in (one, longest, mixed)
    ]


if __name__ == "__main__":
    main()
