"""The model: a MiniLM encoder, the mean of its token vectors, one linear layer."""

import torch
from highroad import training
from torch import nn
from torch.nn.functional import cross_entropy

import data
import encoder


class Classifier(nn.Module):
    """Logits ``[B, labels]`` for ``input_ids`` and ``attention_mask``, both int64 ``[B, S]``."""

    def __init__(self, dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder.fresh()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.encoder.config.hidden_size, len(data.LABELS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(encoder.pooled(self.encoder, input_ids, attention_mask)))


def fresh() -> Classifier:
    """The model without trained weights."""
    return Classifier()


def pretrained(options=None) -> Classifier:
    """The pretrained encoder with a fresh head; with adapters in the encoder where ``options`` ask for them."""
    model = fresh()
    encoder.load_pretrained(model.encoder)
    if options is not None:
        training.lora(model.encoder, options.lora_rank, encoder.ADAPTED)
    return model


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The mean loss of a batch that ``data.collate`` made."""
    input_ids, attention_mask, labels = batch
    return cross_entropy(model(input_ids, attention_mask), labels)


def package() -> dict:
    """What the package says about the model: its task and all that a text needs to become an answer."""
    task = {"task": "classify", "labels": data.LABELS, "flagged": data.FLAGGED}
    return task | {"tokenizer": encoder.tokenizer(), "notices": encoder.NOTICES}


def parity_cases() -> list[tuple[torch.Tensor, ...]]:
    """Inputs the runtime must answer as PyTorch does."""
    return encoder.parity_cases([line["input"]["text"] for line in encoder.must_pass()])
