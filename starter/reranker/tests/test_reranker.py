"""What a reranker relies on besides the facts of every repo."""

import pytest
import torch

import encoder
import judge
import model as models


@torch.no_grad()
def test_before_training_a_pair_scores_what_the_embedder_says():
    model = models.pretrained().eval()
    pairs = [line["input"]["text"] for line in encoder.must_pass()]
    scores = model(*encoder.padded(encoder.token_ids(pairs)))[:, 1]
    query, document = (
        encoder.pooled(model.encoder, *encoder.padded(encoder.token_ids(texts)))
        for texts in zip(*(pair.split(" [SEP] [CLS] ") for pair in pairs), strict=True)
    )
    cosine = torch.cosine_similarity(query, document)
    assert scores.tolist() == pytest.approx((20 * (cosine - 0.3)).tolist(), abs=1e-4)


def test_a_difference_that_could_be_of_either_sign_is_chance():
    assert judge.chance(torch.full([20], 0.1, dtype=torch.double)) < 0.001
    assert judge.chance(torch.tensor([0.1, -0.1] * 10, dtype=torch.double)) == 1.0
