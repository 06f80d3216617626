"""MiniLM-L6 behind LitServe with ONNX Runtime: `litserve_server.py MODEL PORT`. Batches as its documentation advises."""

import sys
from pathlib import Path

import litserve
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MOST_ROWS, WAIT_S, MAX_TOKENS = 32, 0.002, 256


class Embedder(litserve.LitAPI):
    def setup(self, device: str) -> None:
        folder = Path(sys.argv[1])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()
        self.session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict) -> str:
        return request["input"]

    def predict(self, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in encoded], np.int64)
        mask = np.array([each.attention_mask for each in encoded], np.int64)
        (hidden,) = self.session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def encode_response(self, vector: np.ndarray) -> dict:
        return {"data": [{"embedding": vector.tolist(), "index": 0, "object": "embedding"}], "object": "list"}


if __name__ == "__main__":
    api = Embedder(max_batch_size=MOST_ROWS, batch_timeout=WAIT_S)
    litserve.LitServer(api, accelerator="cpu", timeout=60).run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, log_level="warning", generate_client_file=False)
