"""Makes the small programs of conformance/programs: one `.pt2` a feature, with cases recorded from eager PyTorch.

    python conformance/make_programs.py [--into FOLDER] [--bare] [NAME ...]

Each NAME.pt2 is what `torch.export.save` writes, except that paths in stack traces are cut to start at this folder or
at `site-packages`. NAME.safetensors holds cases: `i.input.j` and `i.output.j` are the flattened tensor leaves of case i.
`--bare` leaves out what the program says for people (stack traces, module names), which is most of a small file.
`conformance/older_torch` makes those of earlier releases so.
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

FOLDER = Path(__file__).resolve().parent / "programs"
PROGRAMS = {}


def program(make):
    """Registers a function that gives (module, cases, dynamic_shapes); a case is (args, kwargs)."""
    PROGRAMS[make.__name__] = make
    return make


@program
def mlp():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(8, 3), nn.Softmax(-1))
    return net, [((torch.randn(n, 6),), {}) for n in (4, 1, 7)], {"input": {0: Dim.DYNAMIC}}


@program
def tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.head = nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.embed(ids)))

    return Tied(), [((torch.randint(0, 11, shape),), {}) for shape in ((2, 5), (1, 1))], {
        "ids": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    }


@program
def strided_buffers():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("window", torch.arange(40.0).reshape(5, 8)[1:3, 2:5])
            self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())
            self.register_buffer("scratch", torch.full((3,), 0.5), persistent=False)
            self.register_buffer("mask", torch.tensor([True, False, True]))
            self.offset = torch.tensor([1.0, 2.0, 3.0])
            self.weight_f16 = nn.Parameter(torch.tensor([0.25, 0.5, 1.0], dtype=torch.float16))

        def forward(self, x):
            y = (x + self.window) * self.turned.sum(0)[0] + self.scratch * self.weight_f16.float()
            return torch.where(self.mask, y, self.offset), y @ self.turned

    return Strided(), [((torch.randn(2, 3),), {}), ((torch.randn(2, 3),), {})], None


@program
def scalar_fills():
    class Fills(nn.Module):
        def forward(self, x):
            n = x.shape[0]
            keep = torch.full((n, 3), True)
            keep = keep & (x > 0)
            low = torch.full((n, 3), float("-inf")).masked_fill(keep, 0.0)
            count = torch.ones(n, 3, dtype=torch.long) + torch.full((n, 3), 2)
            return torch.softmax(low + x, -1), count, keep.sum(), torch.nn.functional.leaky_relu(x, 1)

    return Fills(), [((torch.randn(n, 3).abs(),), {}) for n in (4, 2)], {"x": {0: Dim.DYNAMIC}}


@program
def inplace():
    class Inplace(nn.Module):
        def forward(self, x):
            y = x * 2
            view = y.view(-1, 2, 3)
            view[:, 0].zero_()
            y[:, 4:] = x[:, :2]
            y.add_(1).relu_()
            z = torch.zeros_like(y)
            z.select(1, 2).fill_(7)
            z[:, 1:3].copy_(y[:, :2])
            t = z.t()
            t[0] += 3
            residual = y + z
            residual += x
            return residual, view.sum(-1), z

    return Inplace(), [((torch.randn(n, 6),), {}) for n in (3, 1)], {"x": {0: Dim.DYNAMIC}}


@program
def grad_mode():
    class GradMode(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            y = self.linear(x)
            with torch.no_grad():
                angle = torch.sin(y)
                scale = angle.cos() + 1
            with torch.autocast("cpu", enabled=False):
                y = y.float() * scale
            return y, angle

    return GradMode(), [((torch.randn(n, 3),), {}) for n in (2, 5)], {"x": {0: Dim.DYNAMIC}}


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


torch.utils._pytree._register_namedtuple(Pair, serialized_type_name="make_programs.Pair")


@program
def structured():
    class Structured(nn.Module):
        def forward(self, pair, table, scale: int, *, extra=None, names=("a", "b")):
            total = pair.left * scale + pair.right
            if extra is not None:
                total = total + extra["bias"]
            return {"pair": Pair(total, table["a"][0]), "list": [total.sum(), (table["b"],)], "none": None}

    def case():
        args = (Pair(torch.randn(2, 2), torch.randn(2, 2)), {"a": [torch.randn(3)], "b": torch.arange(4)}, 3)
        return args, {"extra": {"bias": torch.ones(2)}}

    return Structured(), [case(), case()], None


@program
def splits():
    class Splits(nn.Module):
        def forward(self, x):
            a, _, c = torch.split(x, [1, 2, 3], dim=1)
            first, second = x.chunk(2, dim=-1)
            rows = x.unbind(1)
            values, indices = x.max(dim=1)
            return a + c[:, :1], first - second, rows[0] + rows[5], values, indices

    return Splits(), [((torch.randn(n, 6),), {}) for n in (3, 1)], {"x": {0: Dim.DYNAMIC}}


@program
def attention():
    class Attention(nn.Module):
        """One encoder layer as transformers writes it: ids and a padding mask in, hidden states out."""

        def __init__(self, width=8, n_heads=2):
            super().__init__()
            self.n_heads, self.head_width = n_heads, width // n_heads
            self.words, self.places = nn.Embedding(20, width), nn.Embedding(16, width)
            self.register_buffer("position_ids", torch.arange(16).expand((1, -1)), persistent=False)
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 16), nn.Linear(16, width)
            self.norm = nn.LayerNorm(width, eps=1e-12)

        def heads(self, x):
            return x.view(*x.shape[:-1], self.n_heads, self.head_width).transpose(1, 2)

        def forward(self, input_ids, attention_mask):
            n_tokens = input_ids.shape[1]
            x = self.norm(self.words(input_ids) + self.places(self.position_ids[:, :n_tokens]))
            mask = attention_mask[:, None, None, :].to(torch.bool).expand(-1, 1, n_tokens, -1)
            q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = self.norm(x + self.out(y.transpose(1, 2).reshape(*x.shape[:-1], -1)))
            x = self.norm(x + self.down(nn.functional.gelu(self.up(x))))
            weights = attention_mask.unsqueeze(-1).to(x.dtype)
            return x, (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

    def case(n_rows, n_tokens):
        mask = torch.ones(n_rows, n_tokens, dtype=torch.long)
        mask[0, n_tokens - 1 :] = int(n_tokens == 1)
        return (torch.randint(0, 20, (n_rows, n_tokens)), mask), {}

    dynamic = {0: Dim.DYNAMIC, 1: Dim("n_tokens", max=16)}
    return Attention(), [case(2, 5), case(1, 1), case(3, 16)], {"input_ids": dynamic, "attention_mask": dynamic}


@program
def convolution():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    return net, [((torch.randn(n, 3, 12, 12),), {}) for n in (2, 1)], {"input": {0: Dim.DYNAMIC}}


def tidy(trace):
    """Paths in a stack trace without the part that names this machine."""
    root = re.escape(str(FOLDER.parent.parent)) + "/"
    return re.sub(rf'File "(?:{root}|[^"]*/site-packages/|[^"]*/lib/python[0-9.]+/)', 'File "', trace)


def tidy_graph(module, bare):
    for node in module.graph.nodes:
        if bare:
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(key, None)
        elif trace := node.meta.get("stack_trace"):
            node.meta["stack_trace"] = tidy(trace)
    for child in module.children():
        if isinstance(child, torch.fx.GraphModule):
            tidy_graph(child, bare)


def make(name, folder, bare):
    torch.manual_seed(0)
    module, cases, dynamic_shapes = PROGRAMS[name]()
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    args, kwargs = cases[0]
    exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    exported._example_inputs = None
    tidy_graph(exported.graph_module, bare)
    recorded = {}
    for i, (args, kwargs) in enumerate(cases):
        with torch.no_grad():
            outputs = module(*args, **kwargs)
        for kind, tree in (("input", (args, kwargs)), ("output", outputs)):
            tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            recorded |= {f"{i}.{kind}.{j}": tensor.contiguous().clone() for j, tensor in enumerate(tensors)}
    torch.export.save(exported, folder / f"{name}.pt2")
    save_file(recorded, folder / f"{name}.safetensors")
    print(name, (folder / f"{name}.pt2").stat().st_size)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *PROGRAMS], metavar="NAME")
    parser.add_argument("--into", type=Path, default=FOLDER)
    parser.add_argument("--bare", action="store_true")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    for name in options.names or PROGRAMS:
        make(name, options.into, options.bare)


if __name__ == "__main__":
    main()
