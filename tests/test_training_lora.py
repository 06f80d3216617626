"""Low-rank adapters: what is trained, and that folding them in changes no answer."""

import torch
from highroad import training
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, rows):
        return self.head(torch.relu(self.query(rows)))


def test_adapters_alone_are_trained_and_fold_into_the_weights():
    torch.manual_seed(0)
    before, rows = Small(), torch.randn(5, 8)
    query = before.query.weight.detach().clone()
    model = training.lora(before, 2, ["query"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [parameter.shape for parameter in trained] == [(2, 8), (8, 2)]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for _ in range(5):
        model(rows).square().sum().backward()
        optimizer.step()
    folded = Small()
    folded.load_state_dict(training.full_weights(model))
    assert not torch.allclose(folded.query.weight, query)
    torch.testing.assert_close(folded(rows), model.eval()(rows))
