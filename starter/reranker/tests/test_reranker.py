"""What a reranker relies on besides the facts of every repo."""

import pytest
import torch

import data
import encoder
import judge
import model as models


@torch.no_grad()
def test_before_training_a_pair_scores_what_the_embedder_says():
    model = models.pretrained().eval()
    cases = [line["input"] for line in encoder.must_pass()]
    pairs = [(case["query"], document) for case in cases for document in case["documents"]]
    scores = model(*encoder.padded(data.pair_ids(pairs)))[:, 0]
    query, document = (
        encoder.pooled(model.encoder, *encoder.padded(encoder.token_ids(list(texts)))) for texts in zip(*pairs, strict=True)
    )
    cosine = torch.cosine_similarity(query, document)
    assert scores.tolist() == pytest.approx((20 * (cosine - 0.3)).tolist(), abs=1e-4)


def test_a_difference_that_could_be_of_either_sign_is_chance():
    assert judge.chance(torch.full([20], 0.1, dtype=torch.double)) < 0.001
    assert judge.chance(torch.tensor([0.1, -0.1] * 10, dtype=torch.double)) == 1.0
