"""Samples for operators that no `OpInfo` reaches: `name: [(args, kwargs), ...]`."""

import inspect
import math
import operator

import torch

F, I, B = torch.float32, torch.int64, torch.bool
INF = float("inf")


def x(*shape, dtype=F):
    if dtype == B:
        return torch.rand(shape) > 0.5
    if not dtype.is_floating_point:
        return torch.randint(-9, 10, shape, dtype=dtype)
    return torch.randn(shape, dtype=dtype) * 3


def call(*args, **kwargs):
    return args, kwargs


def record(goldens, name, sample):
    args, kwargs = sample
    target = resolve(name)
    if isinstance(target, torch._ops.OpOverload):
        goldens.call(target, args, kwargs)
        return
    outputs = target(*args)
    names = list(inspect.signature(target).parameters) if target in FUSED.values() else ["a", "b"]
    goldens.add(name, args, {}, names, outputs)


def resolve(name):
    if name in FUSED:
        return FUSED[name]
    namespace, rest = name.split(".", 1)
    python = {"_operator": operator, "math": math, "torch": torch}
    if namespace in python:
        builtins = {"round": round, "sym_float": float, "sym_int": int}
        return builtins.get(rest) or getattr(python[namespace], rest)
    op, overload = rest.split(".")
    return getattr(getattr(torch.ops.aten, op), overload)


def fused_linear(input, weight, bias, activation):
    gelu_tanh = lambda y: torch.nn.functional.gelu(y, approximate="tanh")  # noqa: E731
    function = gelu_tanh if activation == "gelu_tanh" else getattr(torch.nn.functional, activation)
    return function(torch.nn.functional.linear(input, weight, bias))


def fused_linears(input, weights, biases):
    return [torch.nn.functional.linear(input, weight, bias) for weight, bias in zip(weights, biases)]


def fused_add_layer_norm(input, residual, normalized_shape, weight, bias, eps):
    return torch.nn.functional.layer_norm(input + residual, normalized_shape, weight, bias, eps)


def fused_conv2d_norm(
    input, weight, bias, stride, padding, dilation, groups,
    norm_weight, norm_bias, running_mean, running_var, eps, activation,
):
    function = {"none": lambda y: y, "relu": torch.relu, "relu6": torch.nn.functional.relu6}[activation]
    y = torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return function(
        torch.nn.functional.batch_norm(y, running_mean, running_var, norm_weight, norm_bias, False, 0.1, eps)
    )


# What Highroad's own operators stand for.
FUSED = {
    "highroad.conv2d_norm": fused_conv2d_norm,
    "highroad.linear": fused_linear,
    "highroad.linears": fused_linears,
    "highroad.add_layer_norm": fused_add_layer_norm,
}


def fused():
    activations = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
    yield "highroad.linear", [call(x(2, n + 1), x(3, n + 1), x(3), name) for n, name in enumerate(activations)]
    yield "highroad.linears", [
        call(x(2, 3, 4), [x(3, 4), x(5, 4)], [x(3), None]), call(x(2, 4), [x(3, 4), x(3, 4), x(2, 4)], [x(3), x(3), x(2)])
    ]
    variance = x(2).abs() + 0.5
    yield "highroad.conv2d_norm", [
        call(x(1, 3, 4, 5), x(2, 3, 3, 3), x(2), 1, [1, 1], 1, 1, x(2), x(2), x(2), variance, 1e-3, "relu6"),
        call(x(2, 2, 4, 4), x(2, 1, 2, 2), None, [2, 2], 0, 1, 2, None, None, x(2), variance, 1e-5, "none"),
        call(x(2, 3, 3, 3), x(2, 3, 1, 1), None, 1, 0, 1, 1, x(2), None, x(2), variance, 1e-5, "relu"),
    ]
    yield "highroad.add_layer_norm", [
        call(x(2, 6), x(2, 6), [6], x(6), x(6), 1e-5), call(x(2, 3, 4), x(2, 3, 4), [3, 4], None, None, 1e-12)
    ]


def symbolic():
    ints, floats = [call(7, 3), call(-7, 3), call(7, -3)], [call(7.5, 2), call(-7, 2.0)]
    for name in ("add", "sub", "mul", "floordiv", "mod", "truediv"):
        yield f"_operator.{name}", ints + floats
    yield "_operator.pow", [call(3, 4), call(2, -1), call(9, 0.5)]
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield f"_operator.{name}", [call(1, 2), call(2, 2), call(3, 2), call(2.5, 2)]
    for name in ("and_", "or_"):
        yield f"_operator.{name}", [call(True, False), call(True, True), call(False, False)]
    yield "_operator.neg", [call(3), call(-2.5)]
    yield "_operator.round", [call(2.5), call(3.5), call(-1.2)]
    for name in ("sym_max", "sym_min"):
        yield f"torch.{name}", [call(3, 5), call(5, 3), call(2.5, 3)]
    yield "torch.sym_not", [call(True), call(False)]
    yield "torch.sym_float", [call(3)]
    yield "torch.sym_int", [call(3.7), call(-3.7)]
    for name in ("trunc", "floor", "ceil"):
        yield f"math.{name}", [call(2.5), call(-2.5), call(4.0)]
    yield "aten.sym_size.int", [call(x(2, 3), 1), call(x(2, 3), -2)]
    yield "aten.sym_numel.default", [call(x(2, 3)), call(x(0, 3)), call(x())]


def elementwise():
    mixed = [x(2, 3), x(2, 3, dtype=I), x(2, 3, dtype=B)]
    for name in ("add.Scalar", "sub.Scalar"):
        yield f"aten.{name}", [call(t, 2) for t in mixed[:2]] + [call(mixed[1], 1.5), call(mixed[0], 2, 3)]
    for name in ("mul.Scalar", "div.Scalar"):
        yield f"aten.{name}", [call(t, 2) for t in mixed] + [call(mixed[1], 1.5), call(mixed[0], True)]
    yield "aten.div.Scalar_mode", [
        call(t, 2, rounding_mode=mode) for t in mixed[:2] for mode in ("floor", "trunc")
    ] + [call(mixed[1], 2, rounding_mode=None), call(mixed[0], -0.7, rounding_mode="floor")]
    for name in ("remainder.Scalar", "fmod.Scalar"):
        yield f"aten.{name}", [call(t, n) for t in mixed[:2] for n in (4, -3)] + [call(mixed[0], 1.5)]
    for name in ("bitwise_and.Scalar", "bitwise_or.Scalar"):
        yield f"aten.{name}", [call(mixed[1], 5), call(mixed[2], True)]
    for name in ("__and__", "__or__", "__xor__"):
        yield f"aten.{name}.Tensor", [
            call(mixed[2], x(3, dtype=B)), call(mixed[1], x(2, 1, dtype=I)), call(mixed[1], mixed[2]),
            call(mixed[2], torch.tensor(True)),
        ]
    yield "aten.relu6.default", [call(x(3, 4)), call(x(3, 4, dtype=I))]
    yield "aten.where.ScalarSelf", [call(mixed[2], 1.5, mixed[0]), call(mixed[2], 2, mixed[1])]
    yield "aten.where.ScalarOther", [
        call(mixed[2], mixed[0], -INF), call(mixed[2], torch.tensor(0.0), torch.finfo(F).min), call(mixed[2], mixed[1], 0.5)
    ]
    yield "aten.where.Scalar", [call(mixed[2], 1, 0), call(mixed[2], 1.0, 0), call(mixed[2], True, False)]
    yield "aten.clamp_min.default", [call(mixed[0], 0.5), call(mixed[1], 2), call(mixed[1], 0.5)]
    yield "aten.clamp_max.default", [call(mixed[0], 0.5), call(mixed[1], 2)]
    yield "aten.copy.default", [call(mixed[0], mixed[1]), call(x(2, 3), x(3)), call(mixed[1], x(2, 1))]
    yield "aten.fill.Scalar", [call(x(2, 3), 2.5), call(x(2, 3, dtype=I), 2), call(x(2, dtype=B), 3)]
    yield "aten.zero.default", [call(x(2, 3)), call(x(2, dtype=I))]


def functions():
    """Special values, which random samples miss, and overloads that take a number."""
    odd = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, INF, -INF, float("nan"), 1e-30, -3e4])
    for name in ("ceil", "floor", "round", "trunc", "sign", "neg", "isinf", "isnan"):
        yield f"aten.{name}.default", [call(odd), call(x(2, 3)), call(x(2, 3, dtype=I))]
    for name in ("erf", "expm1", "log1p", "sin", "tanh"):
        yield f"aten.{name}.default", [call(x(4, 5)), call(x(2, 3, dtype=I)), call(x()), call(x(0, 3))]
    numbers = [x(2, 3), x(2, 3, dtype=I), x(2, 3, dtype=torch.int32)]
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield f"aten.{name}.Scalar", [call(t, n) for t in numbers for n in (1, 0.5)]
    yield "aten.rsub.Scalar", [call(t, n, 2) for t in numbers for n in (1, 3)]
    yield "aten.pow.Tensor_Scalar", [call(x(2, 3).abs(), n) for n in (2, 0.5, -1, 3, -0.5, 1.7)] + [
        call(x(2, 3, dtype=I), 3), call(x(2, 3, dtype=I), 0.5)
    ]
    yield "aten.clamp.default", [
        call(x(2, 3), -1, 1), call(x(2, 3, dtype=I), None, 1), call(x(2, 3, dtype=I), 0.5, 2.5),
        call(odd, 0.0, None), call(x(2, 3), 2, -2),
    ]
    yield "aten.clamp.Tensor", [
        call(x(2, 3), x(3), x(2, 1)), call(x(2, 3), None, x(2, 3)), call(x(2, 3, dtype=I), x(3)), call(odd, x(1), None)
    ]
    yield "aten.bmm.default", [call(x(2, 3, 4), x(2, 4, 5)), call(x(0, 3, 4), x(0, 4, 5)), call(x(2, 3, 0), x(2, 0, 2))]
    yield "aten.concat.default", [call([x(2, 3), x(1, 3)]), call([x(2, 3), x(2, 2, dtype=I)], 1), call([x(0), x(2, 3)], -1)]
    i = lambda *shape: torch.randint(-3, 3, shape)
    yield "aten.index.Tensor", [
        call(x(3, 4), [i(2, 2)]), call(x(3, 4, 5), [None, i(2), i(3, 1)]), call(x(3, 4, 3), [i(2), None, i(2)]),
        call(x(3, 4), [torch.tensor([True, False, True])]), call(x(2, 3, dtype=B), [i(2, 1).clamp(0, 1), i(1, 3)]),
        call(x(2, 3), [x(2, 3, dtype=B)]),
    ]
    yield "aten.slice_scatter.default", [
        call(x(4, 3), x(2, 3), 0, 1, 3), call(x(4, 3), x(2, 3), 0, None, None, 2), call(x(4, 3), x(4, 1), 1, -1),
    ]


def conversions():
    dtypes = (F, I, B, torch.int32)
    tensors = [x(2, 3), x(2, 3, dtype=I), x(4, dtype=B), torch.tensor([1.7, -1.7, 0.0, -0.0])]
    pairs = [(t, d) for t in tensors for d in dtypes if t.dtype != d]
    yield "aten.to.dtype", [call(t, d) for t, d in pairs[:6]]
    yield "aten.to.device", [call(t, torch.device("cpu"), d) for t, d in pairs[4:10]]
    yield "aten.to.dtype_layout", [call(t, dtype=d) for t, d in pairs[2:8]]
    yield "aten._to_copy.default", [call(t, dtype=d) for t, d in pairs[-6:]] + [call(x(2))]
    for name in ("to.other", "type_as.default"):
        yield f"aten.{name}", [call(a, b) for a in tensors[:3] for b in tensors[:3] if a is not b]
    for name in ("clone", "alias", "detach", "lift_fresh_copy", "contiguous"):
        yield f"aten.{name}.default", [call(x(2, 3)), call(x(0, 3)), call(x(dtype=I))]
    for name in ("dropout", "feature_dropout"):
        yield f"aten.{name}.default", [call(x(2, 3), 0.5, False), call(x(2, 3), 0.0, True)]
    yield "aten._assert_tensor_metadata.default", [call(x(2, 3), dtype=F)]


def creation():
    sizes = ([2, 3], [], [0, 2])
    for name in ("zeros.default", "ones.default", "empty.memory_format"):
        yield f"aten.{name}", [call(s) for s in sizes] + [call([2], dtype=d) for d in (I, B)]
    for name in ("new_zeros", "new_ones", "new_empty"):
        yield f"aten.{name}.default", [call(x(3, dtype=d), [2, 2]) for d in (F, I, B)] + [
            call(x(3), [], dtype=B)
        ]
    yield "aten.full.default", [call([2, 3], v) for v in (1.5, 2, True, -INF)] + [call([2], 1.5, dtype=I), call([], 3)]
    yield "aten.new_full.default", [call(x(3, dtype=d), [2], 1.5) for d in (F, I, B)] + [call(x(1), [2], 7, dtype=I)]
    yield "aten.arange.default", [call(5), call(2.5), call(0), call(4, dtype=F), call(torch.tensor(3).item())]
    yield "aten.arange.start", [call(2, 7), call(0.5, 3), call(-3, 3), call(1, 4, dtype=torch.int32)]
    yield "aten.arange.start_step", [call(1, 10, 3), call(10, 1, -3), call(0, 1, 0.3), call(5, 5, 2)]


def views():
    yield "aten._unsafe_view.default", [call(x(2, 6), [3, 4]), call(x(2, 6), [-1]), call(x(0, 3), [3, 0])]
    yield "aten.movedim.int", [call(x(2, 3, 4), 0, 2), call(x(2, 3, 4), -1, 0), call(x(2, 3), 1, 1)]
    yield "aten.repeat_interleave.self_int", [
        call(x(2, 3), 2, 1), call(x(2, 3), 3), call(x(2, 3, dtype=I), 2, 0), call(x(2, 3), 0, 1)
    ]


def reductions():
    masks = [x(2, 3, dtype=B), x(2, 3), torch.zeros(2, 3), x(2, 3, dtype=I)]
    for name in ("any.dims", "all.dims"):
        yield f"aten.{name}", [call(m, [0]) for m in masks] + [call(masks[0], [0, 1]), call(masks[0], [1], True)]
    for name in ("_softmax.default", "_log_softmax.default"):
        yield f"aten.{name}", [call(x(3, 4), 1, False), call(x(2, 3, 2), 0, False)]
    blocked = x(3, 4)
    blocked[1] = -INF
    blocked[0, 2:] = -INF
    yield "aten._safe_softmax.default", [call(blocked, -1), call(x(2, 3, 2), 1)]


def images():
    yield "aten.convolution.default", [
        call(x(1, 3, 5, 5), x(2, 3, 3, 3), x(2), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        call(x(1, 4, 5), x(4, 2, 3), None, [2], [1], [1], False, [0], 2),
    ]
    yield "aten.pad.default", [
        call(x(2, 3), [1, 2]), call(x(2, 3), [1, 0, 0, 1], "constant", 1.5), call(x(2, 5), [-1, 1]),
        call(x(2, 3, dtype=I), [1, 1], "constant", 2.0),
    ]
    mean, var = x(3), x(3).abs() + 0.5
    yield "aten.batch_norm.default", [
        call(x(2, 3, 2, 2), x(3), x(3), mean, var, False, 0.1, 1e-5, False),
        call(x(2, 3), None, None, mean, var, False, 0.1, 1e-3, False),
    ]
    yield "aten._native_batch_norm_legit_no_training.default", [
        call(x(2, 3, 2, 2), x(3), x(3), mean, var, 0.1, 1e-5),
        call(x(2, 3, 2, 2), None, None, mean, var, 0.1, 1e-3),
    ]
    q, k, v = x(2, 3, 4, 8), x(2, 3, 5, 8), x(2, 3, 5, 6)
    mask = x(2, 1, 4, 5, dtype=B)
    mask[0, 0, 1] = False
    yield "aten.scaled_dot_product_attention.default", [
        call(*(t[:1, :1] for t in (q, k, v))),
        call(*(t[:1, :2, :, :4] for t in (q, k, v)), mask[:1]),
        call(*(t[:1, :2, :, :4] for t in (q, k, v)), torch.where(mask[1:], 0.0, torch.finfo(F).min)),
        call(*(t[:1, :1, :, :4] for t in (q, k, v)), is_causal=True),
        call(*(t[0, :, :, :4] for t in (q, k, v)), scale=0.25),
        call(x(1, 4, 2, 4), x(1, 2, 3, 4), x(1, 2, 3, 4), enable_gqa=True),
    ]


def calls():
    for group in (symbolic, elementwise, functions, conversions, creation, views, reductions, images, fused):
        torch.manual_seed(0)
        yield from group()
