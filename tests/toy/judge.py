import torch
from torch.nn.functional import cross_entropy

import data


def judge(model, validation, job):
    rows, labels = job.to_device(data.collate(validation))
    logits = model(rows)
    return {"loss": cross_entropy(logits, labels).item(), "accuracy": (logits.argmax(1) == labels).float().mean().item()}


def finish(weights, validation, options):
    return {"validation/finished": 1.0}
