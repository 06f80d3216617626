"""The model: a MiniLM encoder whose mean token vector, of length 1, is the text's place among others."""

import torch
from highroad import training
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import encoder

# How sharply the nearest text must stand out; 0.05 is what contrastive training of sentence vectors commonly takes.
TEMPERATURE = 0.05


class Embedder(nn.Module):
    """Vectors of length 1 ``[B, D]`` for ``input_ids`` and ``attention_mask``, both int64 ``[B, S]``."""

    def __init__(self):
        super().__init__()
        self.encoder = encoder.fresh()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return normalize(encoder.pooled(self.encoder, input_ids, attention_mask), dim=1)


def fresh() -> Embedder:
    """The model without trained weights."""
    return Embedder()


def pretrained(options) -> Embedder:
    model = fresh()
    encoder.load_pretrained(model.encoder)
    training.lora(model.encoder, options.lora_rank, encoder.ADAPTED)
    return model


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """How little each half's own other half stands out among those of the batch."""
    first, second = model(*batch).float().chunk(2)
    similarities = first @ second.T / TEMPERATURE
    own = torch.arange(len(first), device=similarities.device)
    return (cross_entropy(similarities, own) + cross_entropy(similarities.T, own)) / 2


def package() -> dict:
    """What the package says about the model: its task and all that a text needs to become an answer."""
    return {"task": "embed", "normalized": True, "tokenizer": encoder.tokenizer(), "notices": encoder.NOTICES}


def parity_cases() -> list[tuple[torch.Tensor, ...]]:
    """Inputs the runtime must answer as PyTorch does."""
    return encoder.parity_cases(["A bridge over the river", "How do I reset my password?", "The committee met again"])
