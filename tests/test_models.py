"""Whole models of the promised families, exported here: every one loads, runs as PyTorch does, and keeps rows apart."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from cli import ROOT, call, highroad_bin  # noqa: F401

MODELS = ["minilm", "bert", "roberta", "mpnet", "distilbert", "resnet18", "efficientnet_lite0"]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, str(ROOT / "conformance" / "export_models.py"), str(folder), *MODELS]
    subprocess.run(command, check=True, timeout=900)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_and_its_rows_are_independent(name, models, call):  # noqa: F811
    report = json.loads(call("inspect", f"{name}.pt2", "--json", cwd=models).stdout)
    assert report["missing"] == [] and "refused" not in report
    assert report["rows"] == {"independent": True}
    # The mask of an encoder is a view of the caller's: nothing is left of how transformers computed it.
    assert "aten.index.Tensor" not in report["operators"]
    assert not any(op.split(".")[1].endswith("_") for op in report["operators"])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_agrees_with_pytorch(name, models, call):  # noqa: F811
    call("verify", f"{name}.pt2", "--cases", f"{name}.safetensors", cwd=models)


@pytest.fixture
def run(models, call, tmp_path):  # noqa: F811
    def run(name, *inputs, threads):
        save_file({str(i): tensor.contiguous() for i, tensor in enumerate(inputs)}, tmp_path / "in.safetensors")
        files = ("--inputs", str(tmp_path / "in.safetensors"), "--outputs", str(tmp_path / "out.safetensors"))
        call("run", f"{name}.pt2", *files, "--threads", str(threads), cwd=models)
        outputs = load_file(tmp_path / "out.safetensors")
        # Loaded tensors are views of the file, which the next run overwrites.
        return [outputs[str(i)].clone() for i in range(len(outputs))]

    return run


def same_bits(left, right):
    return left.shape == right.shape and torch.equal(left.view(torch.int32), right.view(torch.int32))


@pytest.mark.parametrize("name", ["minilm", "mpnet", "distilbert"])
def test_a_text_has_the_same_bits_alone_in_a_batch_and_under_padding(name, run):
    torch.manual_seed(0)
    lengths = [24, 9, 17, 1]
    ids = torch.randint(5, 400, (4, 24))
    mask = (torch.arange(24)[None] < torch.tensor(lengths)[:, None]).long()
    ids[mask == 0] = 1
    together = run(name, ids, mask, threads=2)
    wider = run(name, *(torch.nn.functional.pad(t, (0, 24), value=v) for t, v in ((ids, 1), (mask, 0))), threads=3)
    for row, length in enumerate(lengths):
        alone = run(name, ids[row : row + 1, :length], mask[row : row + 1, :length], threads=1)
        for output, batched, padded in zip(alone, together, wider, strict=True):
            # Token by token where there is an output a token, else the row.
            part = (slice(row, row + 1), slice(0, length)) if output.dim() == 3 else (slice(row, row + 1),)
            assert same_bits(output, batched[part]) and same_bits(output, padded[part]), (name, row)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_an_image_has_the_same_bits_alone_and_in_a_batch(name, run):
    torch.manual_seed(0)
    images = torch.randn(3, 3, 224, 224) if name == "efficientnet_lite0" else torch.randn(3, 3, 64, 64)
    (together,) = run(name, images, threads=2)
    for row in range(3):
        (alone,) = run(name, images[row : row + 1], threads=1)
        assert same_bits(alone, together[row : row + 1]), (name, row)
