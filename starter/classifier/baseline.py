"""The baseline: the encoder as it came, and logistic regression over its vectors.

The regression becomes the head of the same model, so the baseline is exported, judged and served like any candidate:
`highroad train --script baseline.py --output runs/baseline`.
"""

import argparse
from pathlib import Path

import torch
from highroad import training
from sklearn.linear_model import LogisticRegression

import data
import encoder
import model as models


def main() -> None:
    options = training.options(__doc__)
    Path(options.output).mkdir(parents=True, exist_ok=True)
    with training.start(options) as job:
        fit(options, job)


def fit(options: argparse.Namespace, job: training.Job) -> None:
    model = models.pretrained().eval()
    # The regression learns nothing more from more of them.
    train, validation = data.examples("train", options)[:4_000], data.examples("validation", options)
    log = training.Log(options, job, last_step=1)
    with log.run(0, None, data.files(), {"train": train, "validation": validation}):
        regression = LogisticRegression(max_iter=1_000).fit(*features(model, train, "train"))
        set_head(model, regression)
        log({"validation/accuracy": regression.score(*features(model, validation, "validation"))}, 1)
    training.save_weights(model.state_dict(), Path(options.output, "model.safetensors"))


@torch.no_grad()
def features(model: models.Classifier, examples: list[data.Encoded], name: str):
    """The pooled vectors ``[N, D]`` and the labels ``[N]``, as NumPy arrays."""
    vectors, labels = [], []
    batches = data.batches(examples, 128, torch.Generator().manual_seed(0))
    for i, batch in enumerate(batches, start=1):
        input_ids, attention_mask, expected = data.collate(batch)
        vectors.append(encoder.pooled(model.encoder, input_ids, attention_mask))
        labels.append(expected)
        if i % 20 == 0 or i == len(batches):
            print(f"step {i}/{len(batches)} {name} features", flush=True)
    return torch.cat(vectors).numpy(), torch.cat(labels).numpy()


@torch.no_grad()
def set_head(model: models.Classifier, regression: LogisticRegression) -> None:
    """The regression as a layer: the softmax of its logits is the regression's probability."""
    weight, bias = torch.tensor(regression.coef_), torch.tensor(regression.intercept_)
    if len(data.LABELS) == 2:
        # scikit-learn keeps one margin for two labels: half of it on either side of zero says the same.
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    model.head.weight.copy_(weight)
    model.head.bias.copy_(bias)


if __name__ == "__main__":
    main()
