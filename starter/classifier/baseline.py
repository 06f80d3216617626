"""The baseline: the encoder as it came, and logistic regression over its vectors.

The regression becomes the head of the same model, so the baseline is exported, judged and served like any candidate:
`highroad train --script baseline.py --output runs/baseline`.
"""

import argparse
import tomllib
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

import data
import model as models
import record

STANDARD = tomllib.loads(Path("highroad.toml").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/baseline"))
    parser.add_argument("--n_examples", type=int, default=4_000, help="train on the first so many")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(STANDARD["training"]["seed"])
    model = models.pretrained(len(data.LABELS)).eval()
    tokenizer = models.tokenizer(STANDARD["packaging"]["max_tokens"])
    train = data.encode(data.split("train")[: options.n_examples], tokenizer)
    validation = data.encode(data.split("validation"), tokenizer)

    state = {"step": 0, "run_id": None}
    with record.track({"n_examples": len(train), "classifier": "logistic regression"}, state):
        regression = LogisticRegression(max_iter=1_000).fit(*features(model, train, "train"))
        set_head(model, regression)
        accuracy = regression.score(*features(model, validation, "validation"))
        state["step"] = 1
        record.log({"validation/accuracy": accuracy}, state, 1)
    models.save(model, options.output / "model.safetensors")


@torch.no_grad()
def features(model: models.Classifier, examples: list[data.Encoded], name: str):
    """The pooled vectors ``[N, D]`` and the labels ``[N]``, as NumPy arrays."""
    vectors, labels = [], []
    batches = data.batches(examples, 128, torch.Generator().manual_seed(0))
    for i, batch in enumerate(batches, start=1):
        input_ids, attention_mask, expected = data.collate(batch)
        vectors.append(model.pooled(input_ids, attention_mask))
        labels.append(expected)
        if i % 20 == 0 or i == len(batches):
            print(f"step {i}/{len(batches)} {name} features", flush=True)
    return torch.cat(vectors).numpy(), torch.cat(labels).numpy()


@torch.no_grad()
def set_head(model: models.Classifier, regression: LogisticRegression) -> None:
    """Two logits half the regression's margin apart from zero: their softmax is the regression's probability."""
    weight, bias = torch.tensor(regression.coef_[0]) / 2, torch.tensor(regression.intercept_) / 2
    model.head.weight.copy_(torch.stack([-weight, weight]))
    model.head.bias.copy_(torch.cat([-bias, bias]))


if __name__ == "__main__":
    main()
