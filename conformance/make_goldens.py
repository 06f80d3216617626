"""Golden samples of every declared operator, computed by PyTorch.

Reads the operators from `highroad ops --json`, so there is no second list. Samples come from PyTorch's own test suite
(`OpInfo`) by tracing each sample and recording every declared operator it runs, and from `handwritten.py` for operators
that no `OpInfo` reaches. Writes `goldens/<family>.jsonl`, one case a line. Run from the repository root:

    .venv/bin/python conformance/make_goldens.py target/debug/highroad
"""

import base64
import collections
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

import handwritten

OUT = Path(__file__).parent / "goldens"
MAX_CASES = 6
MAX_TENSOR_ELEMENTS = 420
MAX_OP_BYTES = 9000
MAX_SAMPLES = 24
DTYPES = {
    torch.bool: "bool", torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32",
    torch.int64: "i64", torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64",
}


class Unusable(Exception):
    """A sample that a golden cannot hold."""


def encode_tensor(tensor):
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.numel() > MAX_TENSOR_ELEMENTS:
        raise Unusable
    raw = bytes(tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist())
    return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data": base64.b64encode(raw).decode()}


def encode(value):
    if isinstance(value, torch.Tensor):
        return encode_tensor(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, str):
        return {"str": value}
    if isinstance(value, torch.dtype):
        if value not in DTYPES:
            raise Unusable
        return {"dtype": DTYPES[value]}
    if isinstance(value, (list, tuple, torch.Size)):
        return [encode(item) for item in value]
    raise Unusable


IGNORED = (torch.device, torch.layout, torch.memory_format)


class Goldens:
    def __init__(self, operators):
        self.operators = {op["name"]: op for op in operators if op["runs_as"] is None}
        self.cases = collections.defaultdict(dict)
        self.sizes = collections.Counter()

    def add(self, name, args, kwargs, names, outputs):
        """Keeps the call if it is unlike those already there."""
        if name not in self.operators or len(self.cases[name]) >= MAX_CASES:
            return
        bound = dict(zip(names, args)) | kwargs
        if bound.get("training"):  # programs run after training
            return
        allowed = self.operators[name]["dtypes"]
        tensors = [leaf for leaf in pytree.tree_leaves(bound) if isinstance(leaf, torch.Tensor)]
        if tensors and allowed and not any(DTYPES.get(tensor.dtype) in allowed for tensor in tensors):
            return
        try:
            encoded = {key: encode(value) for key, value in bound.items() if not isinstance(value, IGNORED)}
            flat = [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None]
            if "empty" in name:
                flat = [torch.zeros_like(leaf) for leaf in flat]
            results = [encode(leaf) for leaf in flat]
        except Unusable:
            return
        signature = json.dumps(strip_data(encoded))
        line = json.dumps({"op": name, "args": encoded, "outputs": results}, separators=(",", ":"))
        if signature in self.cases[name] or self.sizes[name] + len(line) > MAX_OP_BYTES:
            return
        self.cases[name][signature] = line
        self.sizes[name] += len(line)

    def call(self, target, args, kwargs):
        """Runs an overload on clones and records the call."""
        schema = target._schema
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (tuple(args), dict(kwargs)))
        kept = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        outputs = target(*args, **kwargs)
        if not schema.is_mutable:
            name = str(target) if str(target).count(".") > 1 else f"{target}.default"
            self.add(name, *kept, [arg.name for arg in schema.arguments], outputs)
        return outputs

    def write(self):
        OUT.mkdir(exist_ok=True)
        by_family = collections.defaultdict(list)
        for name in sorted(self.operators):
            by_family[self.operators[name]["family"]].extend(self.cases[name].values())
        for family, lines in by_family.items():
            (OUT / f"{family}.jsonl").write_text("".join(line + "\n" for line in lines))


def strip_data(value):
    if isinstance(value, dict):
        return {key: strip_data(item) for key, item in value.items() if key != "data"}
    return [strip_data(item) for item in value] if isinstance(value, list) else value


class Recorder(torch.fx.Interpreter):
    def __init__(self, module, goldens):
        super().__init__(module)
        self.goldens = goldens

    def call_function(self, target, args, kwargs):
        if isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable:
            return self.goldens.call(target, args, kwargs)
        return super().call_function(target, args, kwargs)


def trace(goldens, function, sample):
    """Records every declared operator that one OpInfo sample runs."""
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = [leaves[i].detach() for i in positions]
    if any(tensor.numel() > MAX_TENSOR_ELEMENTS or tensor.layout != torch.strided for tensor in tensors):
        return

    def call(*tensors):
        filled = list(leaves)
        for position, tensor in zip(positions, tensors):
            filled[position] = tensor
        head, args, kwargs = pytree.tree_unflatten(filled, spec)
        return function(head, *args, **kwargs)

    with torch.no_grad():
        module = make_fx(call, pre_dispatch=True)(*[tensor.clone() for tensor in tensors])
        Recorder(module, goldens).run(*tensors)


def wanted_infos(goldens):
    bases = {name.split(".")[1] for name, op in goldens.operators.items() if op["samples"] == "OpInfo"}
    for info in op_db:
        names = {info.name.split(".")[-1], info.name.replace(".", "_"), info.aten_name}
        if names & bases:
            yield info


def canonical(schema):
    """A schema in one spelling of its defaults: ATen's sources and PyTorch's printer differ."""
    schema = schema.replace("'", '"').replace("memory_format=0", "memory_format=contiguous_format")
    schema = re.sub(r"=\[(\d+)(?:, \1)*\]", r"=\1", schema)
    return re.sub(r"=(\d+\.[\d.e-]*|\d+e-\d+)", lambda found: f"={float(found[1])}", schema)


def check_schemas(operators):
    """A declared schema is PyTorch's own, and so is every in-place form's name."""
    for op in operators:
        namespace, base, *overload = op["name"].split(".")
        if namespace != "aten":
            continue
        theirs = canonical(str(getattr(getattr(torch.ops.aten, base), overload[0])._schema))
        ours = canonical(op["schema"])
        if op["runs_as"] is None and ours != theirs:
            sys.exit(f"schema of {op['name']}\n  declared {ours}\n  PyTorch  {theirs}")


def main():
    operators = json.loads(subprocess.run([sys.argv[1], "ops", "--json"], check=True, capture_output=True).stdout)
    check_schemas(operators)
    goldens = Goldens(operators)
    for name, calls in handwritten.calls():
        if name not in goldens.operators:
            sys.exit(f"handwritten samples for {name}, which is not declared")
        for call in calls:
            torch.manual_seed(0)
            handwritten.record(goldens, name, call)
    for info in wanted_infos(goldens):
        for dtype in (torch.float32, torch.int64, torch.bool, torch.int32):
            if dtype not in info.dtypes:
                continue
            torch.manual_seed(0)
            for count, sample in enumerate(info.sample_inputs("cpu", dtype, requires_grad=False)):
                if count >= MAX_SAMPLES:
                    break
                try:
                    trace(goldens, info.op, sample)
                except Exception as error:  # an OpInfo sample that PyTorch cannot trace is none of ours
                    print(f"skipped {info.name} {dtype}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
                    break
    goldens.write()
    missing = [name for name in sorted(goldens.operators) if not goldens.cases[name]]
    total = sum(path.stat().st_size for path in OUT.glob("*.jsonl"))
    n_cases = sum(len(cases) for cases in goldens.cases.values())
    print(f"{n_cases} cases of {len(goldens.operators)} operators, {total} bytes", file=sys.stderr)
    if missing:
        sys.exit("operators without a golden: " + ", ".join(missing))


if __name__ == "__main__":
    main()
