"""A loop over `highroad.data.Loader`, as the guide shows it: stopped, resumed, the same samples and losses to the last bit."""

import itertools
import json

import pytest
import tokenizers
import torch
from highroad import training
from highroad.data import Loader
from torch import nn
from torch.nn.functional import cross_entropy

N_RECORDS, BATCH, N_STEPS, STOP_AT = 100, 8, 30, 17


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Records in two files, and a tokenizer of their words."""
    folder = tmp_path_factory.mktemp("corpus")
    records = [{"id": i, "text": " ".join(f"w{(i * 7 + k) % 13}" for k in range(1 + i % 9)), "label": "odd" if i % 2 else "even"} for i in range(N_RECORDS)]
    for name, part in [("a", records[:60]), ("b", records[60:])]:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(13)}, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return str(folder / "*.jsonl"), tokenizer


def train(corpus, output, n_steps, resume=False):
    """The samples of each step and its loss."""
    files, tokenizer = corpus
    options = training.options(args=["--output", str(output), "--seed", "3", "--precision", "f32"])
    seen = []
    with training.start(options) as job:
        model = nn.Sequential(nn.EmbeddingBag(13, 4), nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, training.cosine(N_STEPS, 0.1))
        loader = Loader(
            files, text="text", tokenizer=tokenizer, columns={"label": ["even", "odd"], "id": "int64"},
            batch_size=BATCH // job.world, shuffle=True, seed=options.seed, bucket=True,
        )  # fmt: skip
        checkpoints = training.Checkpoints(options, job, model, optimizer, schedule, job.scaler(), None)
        progress = checkpoints.restore() if resume else training.Progress()
        if progress.data:
            loader.load_state_dict(progress.data)
        while progress.step < n_steps:
            for batch in itertools.islice(loader, n_steps - progress.step):
                optimizer.zero_grad()
                loss = cross_entropy(model(batch["input_ids"]), batch["label"])
                loss.backward()
                optimizer.step()
                schedule.step()
                seen.append((batch["id"].tolist(), loss.item()))
                progress.step += 1
                progress.data = loader.state_dict()
        checkpoints.save(progress)
    return seen


def test_a_resumed_loop_meets_the_samples_that_were_left(corpus, tmp_path, monkeypatch):
    (tmp_path / "highroad.toml").write_text("[training]\n")
    monkeypatch.chdir(tmp_path)
    whole = train(corpus, tmp_path / "whole", N_STEPS)
    first = train(corpus, tmp_path / "stopped", STOP_AT)
    rest = train(corpus, tmp_path / "stopped", N_STEPS, resume=True)
    assert first + rest == whole
    # 13 batches an epoch, so it stopped and went on within the second one.
    epoch = [sample for ids, _ in whole[:13] for sample in ids]
    assert sorted(epoch) == list(range(N_RECORDS))
