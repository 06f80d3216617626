"""Whole models of the promised families, exported here: every one loads, runs as PyTorch does, and keeps rows apart."""

import json
import subprocess
import sys

import pytest
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
