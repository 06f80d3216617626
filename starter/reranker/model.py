"""The model: a cross-encoder. It reads query and document together, and compares what it made of each.

It starts exactly as good as the embedder it is made from: up to the last layer each side sees itself alone, and the cosine of the
two means is that embedder's answer. The last layer sees both, adds nothing yet, and learns what reading both at once is worth.
"""

import torch
from highroad import training
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, one_hot
from transformers.models.bert.modeling_bert import BertLayer

import data
import encoder

CLS = data.tokenizer().token_to_id("[CLS]")


class Reranker(nn.Module):
    """How relevant the document is, a logit ``[B, 1]``, for ``input_ids`` and ``attention_mask``, both int64 ``[B, S]``.

    A row holds `[CLS] query [SEP] [CLS] document [SEP]`.
    """

    def __init__(self):
        super().__init__()
        self.encoder = encoder.fresh()
        self.both = BertLayer(self.encoder.config)
        self.head = nn.Linear(self.encoder.config.hidden_size, 1)
        self.scale, self.border = nn.Parameter(torch.tensor([20.0])), nn.Parameter(torch.tensor([0.3]))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # 1 for the query, 2 for the document; padding belongs to neither.
        side = (input_ids == CLS).to(torch.int64).cumsum(1) * attention_mask
        hidden = self.each_alone(input_ids, side)
        query, document = (normalize(mean(hidden, side == which), dim=1) for which in (1, 2))
        score = self.scale * ((query * document).sum(1, keepdim=True) - self.border)
        together = self.both(hidden, attention_mask=(attention_mask == 1)[:, None, None, :])
        return score + self.head(mean(together, attention_mask == 1))

    def each_alone(self, input_ids: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        """Token vectors ``[B, S, D]`` as if query and document had been encoded by themselves."""
        sees = (side.unsqueeze(2) == side.unsqueeze(1)).unsqueeze(1)
        is_document = (side == 2).to(torch.int64)
        n_before = (side == 1).to(torch.int64).sum(1, keepdim=True)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0) - n_before * is_document
        return self.encoder(input_ids=input_ids, attention_mask=sees, position_ids=positions).last_hidden_state


def mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean ``[B, D]`` of the token vectors that ``mask`` ``[B, S]`` marks."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def fresh() -> Reranker:
    """The model without trained weights."""
    return Reranker()


def pretrained(options=None) -> Reranker:
    """The embedder's weights, also in the layer that sees both, which adds nothing yet."""
    model = fresh()
    encoder.load_pretrained(model.encoder)
    model.both.load_state_dict(model.encoder.encoder.layer[-1].state_dict())
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    if options is not None:
        training.lora(model.encoder, options.lora_rank, encoder.ADAPTED)
    return model


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """How little the right document stands out in its group, and how far each score is from its own answer."""
    input_ids, attention_mask, right = batch
    scores = model(input_ids, attention_mask).float().view(len(right), -1)
    answers = one_hot(right, scores.shape[1]).to(scores.dtype)
    return cross_entropy(scores, right) + binary_cross_entropy_with_logits(scores, answers)


def package() -> dict:
    """What the package says about the model: its task and all that a query and a document need to become a score."""
    return {"task": "rerank", "tokenizer": data.tokenizer(), "notices": encoder.NOTICES}


def parity_cases() -> list[tuple[torch.Tensor, ...]]:
    """Inputs the runtime must answer as PyTorch does."""
    cases = [line["input"] for line in encoder.must_pass()]
    pairs = [(case["query"], document) for case in cases for document in case["documents"]]
    # Several of the longest: one alone may sit where the logit cancels to nothing.
    longest = [(query, f"{document} " * encoder.MAX_TOKENS) for query, document in pairs[:4]]
    return [encoder.padded(data.pair_ids(group)) for group in (pairs[:1], longest, pairs)]
