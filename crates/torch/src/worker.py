# Runs a program on PyTorch, as one JSON argument says: `program`, `device`, `threads`, `compile`. Goes after frames.py.
#
# The first frame says what computes; then each frame of inputs `0`, `1`, ... is answered by one of outputs `0`, `1`, ..., or of an error.

import ctypes
import io
import json
import os
import re
import sys
import tempfile
import zipfile

DTYPES = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
          "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# What torch's loader parses sizes from, with `eval` over sympy's names: https://github.com/pytorch/pytorch/blob/main/torch/_export/serde/serialize.py
SIZES = set("""Symbol Integer Rational Float Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing Where
    PowByNatural FloatPow FloatTrueDiv IntTrueDiv ToFloat TruncToInt TruncToFloat RoundToInt CeilToInt FloorToInt LShift RShift
    Identity Equality Unequality GreaterThan LessThan StrictGreaterThan StrictLessThan And Or Not precision positive integer
    nonnegative real True False""".split())


def is_size(text):
    bare = re.sub(r"'[\w.]*'", "", text)
    names = re.findall(r"[A-Za-z_]\w*", bare)
    return re.fullmatch(r"[\w(),=\s+*/-]*", bare) is not None and SIZES.issuperset(names)


def refuse_code(value):
    """What torch's loader would paste into Python source or evaluate must be a plain name or a size."""
    if isinstance(value, list):
        for inner in value:
            refuse_code(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                if key == "expr_str" and not is_size(inner):
                    raise ValueError(f"the size {inner[:200]!r} is more than arithmetic")
                if key in ("name", "as_name") and re.fullmatch(r"[\w.]*", inner) is None:
                    raise ValueError(f"{inner[:200]!r} is no name")
            refuse_code(inner)


def without_people(program):
    """Leaves out what says something to people only, and the guards, which torch runs as source."""
    for graph in graphs(program):
        for node in graph.get("nodes", []):
            node["metadata"] = {}
    if program.get("guards_code"):
        program["guards_code"] = []
    refuse_code(program)
    return program


def graphs(value):
    """Every graph of a program, those of control flow included."""
    if isinstance(value, list):
        for inner in value:
            yield from graphs(inner)
    elif isinstance(value, dict):
        if isinstance(value.get("nodes"), list):
            yield value
        for inner in value.values():
            yield from graphs(inner)


def plain_archive(path):
    """The program's archive with nothing in it that torch would unpickle, as a file in memory. Errors where it cannot do without."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as plain:
        for record in archive.infolist():
            content = archive.read(record)
            name = record.filename.partition("/")[2]
            if name.startswith("data/sample_inputs/"):
                content = b""  # a pickle of the inputs at export, which torch takes for none where it is empty
            elif name.startswith(("data/weights/", "data/constants/")) and name.endswith("_config.json"):
                for tensor, payload in json.loads(content)["config"].items():
                    if payload.get("use_pickle") or not payload["path_name"].startswith(("weight_", "tensor_")):
                        raise ValueError(f"`{tensor}` is stored as a pickle, and nothing is unpickled here")
            elif name.startswith("data/") and name.endswith((".pt", ".so", ".cpp")):
                raise ValueError(f"`{name}` is a pickle or machine code, and neither is loaded here")
            elif name.startswith("models/"):
                content = json.dumps(without_people(json.loads(content))).encode()
            plain.writestr(record.filename, content)
    copy.seek(0)
    return copy


def refuse_pickles(torch):
    """A second lock: whatever torch would unpickle after all is an error."""
    import pickle

    def refuse(*_, **__):
        raise ValueError("the program holds a pickle, and nothing is unpickled here")

    torch.load = pickle.load = pickle.loads = refuse
    torch._C._pickle_load_obj = refuse


def found_device(torch, name):
    """The device of that name. Errors where it is not there, which torch would tell later and in other words."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if n_gpus else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs alone"
        raise ValueError(f"`{name}` is not there: torch {torch.__version__} {built} and sees {n_gpus} GPUs")
    return device


def example_inputs(torch, program):
    """Inputs of sizes that the program takes: those of its export are a pickle, which is not read."""
    least = {symbol: max(2, int(limits.lower)) for symbol, limits in program.range_constraints.items()}

    def tensor(value):
        shape = [size if isinstance(size, int) else int(size.node.expr.subs(least)) for size in value.shape]
        return torch.ones(shape, dtype=value.dtype, device=value.device)

    named = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    values = [named[spec.arg.name] for spec in program.graph_signature.input_specs if spec.kind.name in ("USER_INPUT", "CONSTANT_INPUT")]
    leaves = [tensor(value) if isinstance(value, torch.Tensor) else value for value in values]
    return torch.utils._pytree.tree_unflatten(leaves, program.call_spec.in_spec)


def compiled(torch, program, how):
    """The program as inductor makes it. Its caches are pickles, so it has none, and it compiles in this process."""
    torch._inductor.config.force_disable_caches = True
    torch._inductor.config.compile_threads = 1
    if how == "inductor":
        return torch.compile(program.module(), dynamic=True, fullgraph=True)
    program.example_inputs = example_inputs(torch, program)
    folder = tempfile.mkdtemp(dir=os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
    made = torch._inductor.aoti_compile_and_package(program, package_path=os.path.join(folder, "program.pt2"))
    return torch._inductor.aoti_load_package(made)


class Runner:
    def __init__(self, torch, path, device, how):
        self.torch, self.device, self.how = torch, found_device(torch, device), how
        archive = plain_archive(path)
        refuse_pickles(torch)
        program = torch.export.load(archive)
        if self.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        self.leaves = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name in ("USER_INPUT", "CONSTANT_INPUT")]
        self.structure = program.call_spec.in_spec
        self.module = program.module() if how == "eager" else compiled(torch, program, how)

    def describe(self):
        torch, on = self.torch, self.device
        if on.type == "cuda":
            kind = torch.cuda.get_device_name(on).replace(" ", "-")
            precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "f32"
        else:
            kind, precision = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower(), "f32"
        said = {"torch": torch.__version__, "device": on.type, "kind": kind, "precision": precision, "threads": str(torch.get_num_threads())}
        return said if self.how == "eager" else said | {"compiled": self.how}

    def run(self, inputs):
        """The output tensors, on the CPU, and the seconds that the GPU worked; none without one."""
        torch = self.torch
        given = iter(inputs)
        leaves = [leaf.value if hasattr(leaf, "value") else next(given).to(self.device) for leaf in self.leaves]
        args, kwargs = torch.utils._pytree.tree_unflatten(leaves, self.structure)
        with torch.no_grad():
            if self.device.type != "cuda":
                return self.tensors(self.module(*args, **kwargs)), None
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            outputs = self.module(*args, **kwargs)
            end.record()
            torch.cuda.synchronize(self.device)
            return self.tensors(outputs), begin.elapsed_time(end) / 1e3

    def tensors(self, outputs):
        return [tensor.cpu().contiguous() for tensor in self.torch.utils._pytree.tree_leaves(outputs)]


def receive(torch, stream):
    # A copy, because the data need not be aligned where it lies.
    return [torch.frombuffer(bytearray(data), dtype=getattr(torch, DTYPES[dtype])).reshape(shape) for dtype, shape, data in read_frame(stream)[1]]


def send(stream, metadata, tensors=()):
    names = {name: key for key, name in DTYPES.items()}
    told = [
        (names[str(tensor.dtype).removeprefix("torch.")], list(tensor.shape), ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()))
        for tensor in tensors
    ]
    write_frame(stream, metadata, told)


def main():
    asked = json.loads(sys.argv[1])
    end_with_parent()
    questions, answers = pipes()
    try:
        import torch

        torch.set_num_threads(asked["threads"])
        runner = Runner(torch, asked["program"], asked["device"], asked["compile"])
    except Exception as error:
        send(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    send(answers, runner.describe())
    while True:
        inputs = receive(torch, questions)
        try:
            outputs, gpu_s = runner.run(inputs)
        except Exception as error:
            send(answers, {"error": f"{type(error).__name__}: {error}"})
        else:
            send(answers, {} if gpu_s is None else {"gpu_s": repr(gpu_s)}, outputs)


if __name__ == "__main__":
    main()
