"""From a trained module to a package source: the program, its tokenizer, its parity cases and where it comes from."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import _provenance

if TYPE_CHECKING:
    import torch

__all__ = ["ExportError", "export"]

# The file that makes a directory a package source; only such a directory is ever replaced.
_DESCRIPTION = "package.toml"
_ROLES = ("train", "validation", "test")
_CARD = "README.md"
_NOTICES = ("LICENSE", "NOTICE", _CARD)
# Labels, items and outputs that a card names.
_MOST_NAMED = 20
# A name travels into registry URLs and references (`name@alias`), so it keeps to what both accept.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ExportError(ValueError):
    """The module cannot become a package; the message says why and what helps."""


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    name: str,
    task: Literal["classify", "embed", "rerank", "recommend", "tensors"],
    tokenizer: Any = None,
    max_tokens: int | None = None,
    image: Mapping[str, Any] | None = None,
    parity_inputs: Sequence[tuple[Any, ...]],
    licence: str,
    owner: str,
    labels: Sequence[str] | None = None,
    flagged: str | None = None,
    pairs: bool = False,
    thresholds: float | Sequence[float] | None = None,
    items: Sequence[str] | None = None,
    normalized: bool | None = None,
    matryoshka_dimensions: Sequence[int] = (),
    prompts: Mapping[str, str] | str | os.PathLike[str] | None = None,
    default_prompt_name: str | None = None,
    truncation: Literal["right", "left", "error"] = "right",
    pair_truncation: Literal["longest_first", "only_second"] = "longest_first",
    dynamic_shapes: Any = None,
    output_names: Sequence[str] | None = None,
    relative_rms: float = 1e-5,
    data: Mapping[str, str | os.PathLike[str]] | None = None,
    data_roles: Mapping[str, str] | None = None,
    lock: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    git_commit: str | None = None,
    notices: Sequence[str | os.PathLike[str]] = (),
    training_inputs: tuple[Any, ...] | None = None,
) -> Path:
    """Write ``module`` as a package source directory at ``path`` and return that path.

    The directory holds ``program.pt2``, ``tokenizer.json`` (of a model that reads), ``parity.safetensors`` and ``package.toml``;
    ``highroad pack`` turns it into a package. An earlier package source at ``path`` is replaced, anything else refused.

    Args:
        module: the trained module, float32. It is exported in evaluation mode, on the CPU, as it is used in production.
        args: example inputs ``(input_ids, attention_mask)``, both int64 ``[B, S]`` with B and S at least 2: a size of
            1 in an example would be exported as the constant 1. A model that sees takes ``(pixel_values,)``, float32 ``[B, C, H, W]``.
        name: the model's name, a suggestion for the registry.
        task: ``"classify"`` (the module returns logits ``[B, labels]``), ``"embed"`` (vectors ``[B, D]``), ``"rerank"`` (one
            logit for each pair of query and document, ``[B, 1]``), ``"recommend"`` (a logit for each item after a history of items,
            ``[B, items]``; the tokenizer splits a history at its spaces) or ``"tensors"``: any tensors in and out, by name, without a
            tokenizer; give ``dynamic_shapes`` where sizes vary.
        tokenizer: a ``tokenizer.json``, a ``tokenizers.Tokenizer`` or a fast transformers tokenizer.
        max_tokens: longest input in tokens, special tokens included; what happens to longer ones ``truncation`` says.
        image: classify only, instead of ``tokenizer`` and ``max_tokens``: how a picture becomes ``pixel_values``. ``height`` and ``width``
            of the input, ``resize`` (``"exact"``, ``{"shortest_edge": 256}``, whose centre is cut out, or ``"none"``),
            ``interpolation`` (``"bilinear"`` or ``"bicubic"``), ``mean`` and ``std``; and if need be ``channels`` (``"rgb"``, ``"bgr"``,
            ``"grey"``), ``orientation`` (``"exif"``, ``"stored"``) and ``rescale`` (1/255).
        parity_inputs: one tuple of inputs a case. Eager PyTorch answers them now; the runtime must agree later.
        licence: SPDX expression of the weights' licence.
        owner: who answers for the model.
        labels: classify only: the label of each logit.
        flagged: classify only: the label that a moderation endpoint flags; with ``thresholds`` ``"*"`` for each of them.
        pairs: classify only: an input is two texts side by side, such as a premise and a hypothesis.
        thresholds: classify only: makes it multi-label. Each score is the logistic function of its own logit (train with
            ``BCEWithLogitsLoss``), and a label holds from its threshold on: one number for all, or one for each label.
        items: recommend only: the item of each logit, words without spaces.
        normalized: embed only: whether the module returns vectors of length 1; measured if not given.
        matryoshka_dimensions: embed only: widths below the module's own that it was trained to be cut to (``MatryoshkaLoss`` of
            sentence-transformers). Clients may ask for these and for no others.
        prompts: embed: texts that go before an input, by name, such as ``{"query": "query: ", "document": "passage: "}``; or the folder of
            a sentence-transformers model, whose ``config_sentence_transformers.json`` says them, and which of them is the default. rerank:
            what goes before a ``query`` and a ``document``. Train with them: nothing here puts them before the training texts.
        default_prompt_name: embed only: the prompt of a text for which none is asked.
        truncation: what happens to an input that is too long: it loses its end (a history its start), its start, or is refused.
        pair_truncation: which text of a pair loses tokens: the longer one, or only the second one, the document.
        dynamic_shapes: as ``torch.export.export`` takes it; by default batch and sequence of every input vary, of pictures the batch.
        output_names: tensors only: what each output is called, by golden sets, gates and clients. The keys of a module that returns a
            dict unless given; else the names that the graph has for them, which change with the code.
        relative_rms: largest accepted root mean square of the difference over that of eager PyTorch's output.
        data: files that trained the module by name, or their ``sha256:…`` digests.
        data_roles: what each of them was for, by name: ``"train"``, ``"validation"`` or ``"test"``. A review looks for golden
            cases in all but the last; leave a file out that holds several splits.
        lock: lock file of the environment.
        run_id: tracked run that trained it; by default ``MLFLOW_RUN_ID``.
        git_commit: commit of the training code; by default ``HIGHROAD_GIT_COMMIT``, or what is checked out here.
        notices: files named ``LICENSE``, ``NOTICE`` or ``README.md`` (the model card) that must travel with the weights. Without a
            card one is written of what is said here; it claims nothing about what the model is for.
        training_inputs: tensors only: inputs like ``args`` for many rows that trained the module, at least 30, where the first dimension is
            that of the rows (of a module without a batch one dimension before its own). ``highroad pack`` makes the baseline of them that
            monitoring compares traffic with; the rows themselves are in no package.

    Raises:
        ExportError: the inputs contradict the task, the module cannot be exported, or the exported program does not
            compute what the module computes.
    """
    try:
        import torch
    except ImportError as error:
        raise ExportError("`highroad.export` needs torch: install torch >= 2.9 in this environment") from error

    target = Path(path)
    _refuse_foreign_directory(target)
    description: dict[str, Any] = {
        "name": _checked_name(name),
        "licence": _said(licence, "licence", "an SPDX expression such as `Apache-2.0`"),
        "owner": _said(owner, "owner", "a team or an address"),
    }
    if not parity_inputs:
        raise ExportError("`parity_inputs` is empty: without recorded answers nothing proves the package right")
    provenance = _describe_provenance(run_id, git_commit, lock, data, torch.__version__)
    if data_roles:
        provenance["data_roles"] = _checked_roles(data_roles, data or {})

    if training_inputs is not None and task != "tensors":
        raise ExportError("`training_inputs` is for the task `tensors`: others have their baseline of a golden set, or of texts")

    state = _Production(module)
    with state, torch.no_grad():
        answered = _answer if task != "tensors" else _outputs
        cases = [(inputs, answered(module, inputs, f"parity case {i}")) for i, inputs in enumerate(parity_inputs)]
        if task == "tensors":
            signature = _tensors_signature(tokenizer, max_tokens, image, labels, flagged, items)
            signature |= _output_names(output_names, module, parity_inputs[0], len(cases[0][1]))
        else:
            if output_names is not None:
                raise ExportError("`output_names` is for the task `tensors`")
            reads = _input_signature(task, tokenizer, max_tokens, image, args, flagged)
            signature = _task_signature(task, labels, flagged, normalized, items, thresholds, [outputs[0] for _, outputs in cases]) | reads
        signature |= _matryoshka(matryoshka_dimensions, signature) | _pairs(pairs, signature)
        signature |= _prompts(prompts, default_prompt_name, task) | _truncation(truncation, pair_truncation, signature)
        program = _exported(module, args, dynamic_shapes, max_tokens, task)
        _check_program(program, cases, relative_rms, answered)

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _save_program(program, staging / "program.pt2")
        if image is None and task != "tensors":
            _save_tokenizer(tokenizer, staging / "tokenizer.json")
        _save_cases(cases, staging / "parity.safetensors")
        if training_inputs is not None:
            _save_rows(training_inputs, staging / "training.safetensors")
        _copy_notices(notices, staging)
        description |= {"task": signature, "parity": {"relative_rms": relative_rms}, "provenance": provenance}
        if not (staging / _CARD).exists():
            (staging / _CARD).write_text(_card(description), encoding="utf-8")
        (staging / _DESCRIPTION).write_text(_toml(description), encoding="utf-8")
        staging.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _card(description: Mapping[str, Any]) -> str:
    """A model card of what is known at export, the same for the same model. What the model is for only its author can say."""
    signature, provenance = dict(description["task"]), dict(description["provenance"])
    data, roles = provenance.pop("data", {}), provenance.pop("data_roles", {})
    lines = [f"# {description['name']}", "", "Written by `highroad.export` from what was known then; nobody has described the model yet.", ""]
    lines += [f"- owner: {_one_line(description['owner'])}", f"- licence: {_one_line(description['licence'])}"]
    lines += ["", "## Task", "", *(f"- {key}: {_one_line(value)}" for key, value in signature.items())]
    lines += ["", "## Origin", "", *(f"- {key}: {_one_line(value)}" for key, value in provenance.items())]
    lines += [f"- data `{_one_line(name)}`{f' ({roles[name]})' if name in roles else ''}: {digest}" for name, digest in data.items()]
    lines += ["", "## Evidence", "", f"- parity with PyTorch: relative RMS at most {description['parity']['relative_rms']}"]
    lines += ["- what it is good for: the verdicts of `highroad gate` on this package, which the registry keeps beside it"]
    return "\n".join(lines) + "\n"


def _one_line(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > _MOST_NAMED:
        return f"{_one_line(value[:_MOST_NAMED])} and {len(value) - _MOST_NAMED} more"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())


def _refuse_foreign_directory(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / _DESCRIPTION).is_file()):
        raise ExportError(f"`{target}` exists and is not a package source: choose another path or remove it")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ExportError(f"`{name}` cannot name a model: use letters, digits, `.`, `_` and `-`, at most 128")
    return name


def _said(value: str, field: str, example: str) -> str:
    if not value.strip():
        raise ExportError(f"`{field}` is empty: say {example}")
    return value


class _Production:
    """The module as production runs it (evaluation mode, CPU), put back afterwards."""

    def __init__(self, module: torch.nn.Module) -> None:
        import torch

        if not isinstance(module, torch.nn.Module):
            raise ExportError(f"expected a torch.nn.Module, got {type(module).__name__}")
        others = {t.dtype for t in module.parameters() if t.is_floating_point()} - {torch.float32}
        if others:
            kinds = ", ".join(sorted(map(str, others)))
            raise ExportError(f"the module has {kinds} parameters: call `module.float()` first")
        self._module = module
        self._modes = [(part, part.training) for part in module.modules()]
        self._device = next((t.device for t in module.parameters()), torch.device("cpu"))

    def __enter__(self) -> None:
        self._module.eval().to("cpu")

    def __exit__(self, *_: object) -> None:
        self._module.to(self._device)
        for part, training in self._modes:
            part.training = training


def _outputs(module: Any, inputs: tuple[Any, ...], what: str) -> list[torch.Tensor]:
    """Eager PyTorch's outputs, flattened: tensors, at least one."""
    import torch
    from torch.utils import _pytree as pytree

    if not isinstance(inputs, tuple):
        raise ExportError(f"{what} is a {type(inputs).__name__}: expected the tuple of the module's inputs")
    try:
        leaves = pytree.tree_leaves(module(*inputs))
    except Exception as error:
        raise ExportError(f"the module fails on {what}: {error}") from error
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise ExportError(f"the module returns {[type(leaf).__name__ for leaf in leaves]} on {what}: expected tensors")
    return leaves


def _answer(module: Any, inputs: tuple[Any, ...], what: str) -> list[torch.Tensor]:
    """Eager PyTorch's answer: one float32 tensor ``[B, …]`` of finite numbers."""
    import torch

    leaves = _outputs(module, inputs, what)
    if len(leaves) != 1:
        raise ExportError(f"the module returns {len(leaves)} values on {what}: expected one tensor")
    output = leaves[0]
    if output.dtype != torch.float32 or output.ndim != 2:
        raise ExportError(f"the module returns {output.dtype} {list(output.shape)} on {what}: expected float32 [B, N]")
    if not bool(torch.isfinite(output).all()):
        raise ExportError(f"the module returns NaN or infinity on {what}: training diverged, or the case is broken")
    return leaves


def _tensors_signature(*others: Any) -> dict[str, Any]:
    """Nothing stands between a client and the program, so nothing is said about it."""
    if any(other is not None for other in others):
        raise ExportError("the task `tensors` has no `tokenizer`, `max_tokens`, `image`, `labels`, `flagged` and `items`")
    return {"task": "tensors"}


def _output_names(given: Sequence[str] | None, module: Any, inputs: tuple[Any, ...], n_outputs: int) -> dict[str, Any]:
    """What the outputs are called, where somebody says so."""
    import torch

    answer = module(*inputs) if given is None else None
    is_named = isinstance(answer, Mapping) and all(isinstance(value, torch.Tensor) for value in answer.values())
    names = list(answer) if is_named else given
    if names is None:
        return {}
    if len(names) != n_outputs or len(set(names)) != n_outputs or not all(isinstance(name, str) and name for name in names):
        raise ExportError(f"the outputs are called {list(names)}: expected {n_outputs} different names, one for each tensor")
    return {"outputs": list(names)}


_IMAGE_KEYS = {"height", "width", "resize", "interpolation", "mean", "std"}
_IMAGE_OPTIONS = {"channels", "orientation", "rescale"}


def _input_signature(
    task: str, tokenizer: Any, max_tokens: int | None, image: Mapping[str, Any] | None, args: Any, flagged: str | None
) -> dict[str, Any]:
    """What the task says about its input: of a text its longest, of a picture how it becomes ``pixel_values``."""
    if image is not None:
        if task != "classify" or tokenizer is not None or max_tokens is not None or flagged is not None:
            raise ExportError("`image` is for `classify`, without `tokenizer`, `max_tokens` and `flagged`")
        return {"image": _image_signature(image, args)}
    if tokenizer is None or max_tokens is None:
        raise ExportError("a model that reads needs `tokenizer` and `max_tokens`, one that sees needs `image`")
    if max_tokens < 2:
        raise ExportError(f"`max_tokens` is {max_tokens}: a text needs room for its special tokens")
    return {"max_tokens": max_tokens}


def _image_signature(image: Mapping[str, Any], args: Any) -> dict[str, Any]:
    import torch

    missing, unknown = _IMAGE_KEYS - image.keys(), image.keys() - _IMAGE_KEYS - _IMAGE_OPTIONS
    if missing or unknown:
        words = [f"lacks {', '.join(sorted(missing))}"] * bool(missing) + [f"has {', '.join(sorted(unknown))}"] * bool(unknown)
        raise ExportError(f"`image` {' and '.join(words)}: known are {', '.join(sorted(_IMAGE_KEYS | _IMAGE_OPTIONS))}")
    needed = [1 if image.get("channels") == "grey" else 3, image["height"], image["width"]]
    pixels = args[0] if isinstance(args, tuple) and len(args) == 1 else None
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.float32 or list(pixels.shape[1:]) != needed:
        found = list(pixels.shape) if isinstance(pixels, torch.Tensor) else args
        raise ExportError(f"the example input is {found}: `image` says float32 [B, {', '.join(map(str, needed))}]")
    numbers = {key: [float(value) for value in image[key]] for key in ("mean", "std")}
    return dict(image) | numbers


def _task_signature(
    task: str,
    labels: Sequence[str] | None,
    flagged: str | None,
    normalized: bool | None,
    items: Sequence[str] | None,
    thresholds: float | Sequence[float] | None,
    outputs: list[torch.Tensor],
) -> dict[str, Any]:
    widths = {output.shape[1] for output in outputs}
    if len(widths) != 1:
        raise ExportError(f"the module returns outputs of different widths {sorted(widths)}")
    (width,) = widths
    signature: dict[str, Any] = {"task": task}
    if task == "recommend":
        return signature | _recommend_signature(items, width)
    if items is not None:
        raise ExportError("`items` is for the task `recommend`")
    if task == "classify":
        return signature | _classify_signature(labels, flagged, thresholds, width)
    if thresholds is not None:
        raise ExportError("`thresholds` is for the task `classify`")
    if task == "embed":
        return signature | _embed_signature(labels, flagged, normalized, outputs)
    if task == "rerank":
        return signature | _rerank_signature(labels, flagged, width)
    raise ExportError(f"`{task}` is not a task: expected `classify`, `embed`, `rerank`, `recommend` or `tensors`")


def _classify_signature(
    labels: Sequence[str] | None, flagged: str | None, thresholds: float | Sequence[float] | None, width: int
) -> dict[str, Any]:
    if labels is None or len(set(labels)) != len(labels) or not all(labels):
        raise ExportError("a classifier needs `labels`: one different name for each logit")
    if len(labels) != width:
        raise ExportError(f"the module returns {width} logits and `labels` has {len(labels)}")
    multi = {} if thresholds is None else {"thresholds": _checked_thresholds(thresholds, labels)}
    if flagged is not None and flagged not in labels and not (multi and flagged == "*"):
        raise ExportError(f"`flagged` is `{flagged}`, which is not one of the labels {list(labels)}")
    return {"labels": list(labels)} | ({"flagged": flagged} if flagged is not None else {}) | multi


def _checked_thresholds(thresholds: float | Sequence[float], labels: Sequence[str]) -> list[float]:
    each = [thresholds] * len(labels) if isinstance(thresholds, int | float) else list(thresholds)
    if len(each) != len(labels) or not all(0 < threshold < 1 for threshold in each):
        raise ExportError(f"`thresholds` is {thresholds}: one number between 0 and 1, or one for each of the {len(labels)} labels")
    if spaced := next((label for label in labels if "," in label), None):
        raise ExportError(f"label `{spaced}` has a comma, which is what stands between labels that hold at once")
    return [float(threshold) for threshold in each]


def _embed_signature(
    labels: Sequence[str] | None, flagged: str | None, normalized: bool | None, outputs: list[torch.Tensor]
) -> dict[str, Any]:
    if labels is not None or flagged is not None:
        raise ExportError("an embedder has no `labels` and no `flagged`")
    unit = all(bool(((output.norm(dim=1) - 1).abs() < 1e-4).all()) for output in outputs)
    if normalized is not None and normalized != unit:
        raise ExportError(f"`normalized` is {normalized}, but the module's vectors say {unit}")
    return {"dimensions": outputs[0].shape[1], "normalized": unit}


def _matryoshka(widths: Sequence[int], signature: Mapping[str, Any]) -> dict[str, Any]:
    if not widths:
        return {}
    if signature["task"] != "embed":
        raise ExportError("`matryoshka_dimensions` is for the task `embed`")
    ascending = sorted(set(widths))
    if not all(isinstance(width, int) and 0 < width < signature["dimensions"] for width in ascending):
        raise ExportError(f"`matryoshka_dimensions` is {list(widths)}: numbers above 0 and below the width {signature['dimensions']}")
    return {"matryoshka_dimensions": ascending}


def _recommend_signature(items: Sequence[str] | None, width: int) -> dict[str, Any]:
    if items is None or len(set(items)) != len(items) or not all(items):
        raise ExportError("a recommender needs `items`: one different name for each logit")
    if len(items) != width:
        raise ExportError(f"the module returns {width} logits and `items` has {len(items)}")
    if spaced := next((item for item in items if len(item.split()) != 1), None):
        raise ExportError(f"item `{spaced}` has a space in it, which is what stands between two items of a history")
    return {"items": list(items)}


def _pairs(pairs: bool, signature: Mapping[str, Any]) -> dict[str, Any]:
    if not pairs:
        return {}
    if signature["task"] != "classify" or "image" in signature or "flagged" in signature:
        raise ExportError("`pairs` is for the task `classify`, without `image` and `flagged`")
    return {"pairs": True}


_ST_CONFIG = "config_sentence_transformers.json"


def _prompts(prompts: Any, default: str | None, task: str) -> dict[str, Any]:
    if isinstance(prompts, str | os.PathLike):
        prompts, named = _sentence_transformers_prompts(Path(prompts))
        default = default if default is not None else named
    if not prompts and default is None:
        return {}
    if task not in ("embed", "rerank"):
        raise ExportError("`prompts` are for the tasks `embed` and `rerank`")
    prompts = dict(prompts or {})
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in prompts.items()):
        raise ExportError(f"`prompts` is {prompts!r}: names and texts")
    if task == "rerank" and (default is not None or not set(prompts) <= {"query", "document"}):
        raise ExportError("a reranker has a prompt for `query` and one for `document`, and no `default_prompt_name`")
    if default is not None and default not in prompts:
        raise ExportError(f"`default_prompt_name` is `{default}`, none of the prompts {sorted(prompts)}")
    return {"prompts": prompts} | ({} if default is None else {"default_prompt_name": default})


def _sentence_transformers_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """The prompts of a sentence-transformers model, and the name of its default."""
    path = folder / _ST_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"`prompts`: cannot read `{path}`: {error.strerror}") from error
    except ValueError as error:
        raise ExportError(f"`prompts`: `{path}` is not JSON: {error}") from error
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not (default is None or isinstance(default, str)):
        raise ExportError(f"`prompts`: `{path}` does not map names to texts")
    # sentence-transformers 5 writes empty ones into every model's file. Beside others an empty one says that there is none for it.
    return (prompts if any(prompts.values()) or default is not None else {}), default


def _truncation(truncation: str, pairs: str, signature: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if truncation != "right":
        if truncation not in ("left", "error"):
            raise ExportError(f"`truncation` is {truncation!r}: expected `right`, `left` or `error`")
        if "image" in signature or (truncation == "left" and signature["task"] == "recommend"):
            raise ExportError(f"`truncation` cannot be `{truncation}` here: pictures have none, and histories lose their oldest items")
        said["truncation"] = truncation
    if pairs != "longest_first":
        if pairs != "only_second":
            raise ExportError(f"`pair_truncation` is {pairs!r}: expected `longest_first` or `only_second`")
        if signature["task"] != "rerank" and not signature.get("pairs"):
            raise ExportError("`pair_truncation` is for rerankers and classifiers of pairs")
        said["pair_truncation"] = pairs
    return said


def _rerank_signature(labels: Sequence[str] | None, flagged: str | None, width: int) -> dict[str, Any]:
    if labels is not None or flagged is not None:
        raise ExportError("a reranker has no `labels` and no `flagged`")
    if width != 1:
        raise ExportError(f"the module returns {width} values where a reranker returns one logit for each pair")
    return {}


def _exported(module: Any, args: tuple[Any, ...], dynamic_shapes: Any, max_tokens: int | None, task: str) -> Any:
    import torch

    if dynamic_shapes is None and task != "tensors":
        dynamic_shapes = _batch(args) if max_tokens is None else _batch_and_tokens(args, max_tokens)
    try:
        return torch.export.export(module, args, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise ExportError(
            f"torch.export cannot capture the module: {reason}\n"
            "hint: Python `if` or `for` over tensor values is the usual cause; `torch.where` or `torch.cond` express it"
        ) from error


def _batch(args: tuple[Any, ...]) -> tuple[Any, ...]:
    from torch.export import Dim

    if args[0].shape[0] < 2:
        raise ExportError("the example is one image: a size of 1 would be exported as the constant 1; give two")
    return ({0: Dim("batch", min=1)},)


def _batch_and_tokens(args: tuple[Any, ...], max_tokens: int) -> tuple[Any, ...]:
    import torch
    from torch.export import Dim

    for i, value in enumerate(args):
        if not isinstance(value, torch.Tensor) or value.ndim != 2:
            raise ExportError(f"example input {i} is not a [B, S] tensor: say `dynamic_shapes` yourself")
        if min(value.shape) < 2:
            raise ExportError(
                f"example input {i} is {list(value.shape)}: a size of 1 would be exported as the constant 1; "
                "give an example of at least two rows of at least two tokens"
            )
    batch, tokens = Dim("batch", min=1), Dim("tokens", min=1, max=max_tokens)
    return tuple({0: batch, 1: tokens} for _ in args)


def _check_program(program: Any, cases: list[tuple[tuple[Any, ...], list[torch.Tensor]]], relative_rms: float, answered: Any) -> None:
    """Export can bake in what the example happened to show; the parity cases would then disagree already here."""
    exported = program.module()
    for i, (inputs, expected) in enumerate(cases):
        found = answered(exported, inputs, f"parity case {i} of the exported program")
        error = max(_relative_rms(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
        if error > relative_rms:
            raise ExportError(
                f"the exported program differs from the module on parity case {i}: relative rms {error:.2e}, "
                f"accepted {relative_rms:.0e}; something in `forward` depends on the example's values or sizes"
            )


def _relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference, expected = found.double() - expected.double(), expected.double()
    return float(difference.square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-30)) if expected.numel() else 0.0


def _save_program(program: Any, path: Path) -> None:
    import torch

    # The archive would otherwise carry the example tensors, which may be somebody's text.
    program._example_inputs = None
    for node in program.graph.nodes:
        if trace := node.meta.get("stack_trace"):
            node.meta["stack_trace"] = _portable_trace(trace)
    torch.export.save(program, path)


def _portable_trace(trace: str) -> str:
    """File names as a reader elsewhere knows them; the machine that exported is nobody's business."""
    for root in sorted({os.getcwd(), *filter(None, sys.path)}, key=len, reverse=True):
        trace = trace.replace(f'File "{root.rstrip("/")}/', 'File "')
    return trace


def _save_tokenizer(tokenizer: Any, path: Path) -> None:
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(tokenizer, "to_str"):
        text = tokenizer.to_str()
    elif isinstance(tokenizer, str | os.PathLike):
        try:
            text = Path(tokenizer).read_text(encoding="utf-8")
        except OSError as error:
            raise ExportError(f"cannot read the tokenizer: {error}") from error
    else:
        raise ExportError(
            f"a {type(tokenizer).__name__} is not a tokenizer Highroad reads: give a `tokenizer.json`, a "
            "`tokenizers.Tokenizer` or a fast transformers tokenizer"
        )
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ExportError(f"the tokenizer is not JSON: {error}") from error
    # Padding and truncation belong to the task (`max_tokens`); a setting left in the file would fight it.
    content["padding"] = content["truncation"] = None
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _save_cases(cases: list[tuple[tuple[Any, ...], list[torch.Tensor]]], path: Path) -> None:
    from safetensors.torch import save_file
    from torch.utils import _pytree as pytree

    tensors = {}
    for i, (inputs, outputs) in enumerate(cases):
        tensors |= {f"{i}.input.{j}": leaf for j, leaf in enumerate(pytree.tree_leaves(inputs))}
        tensors |= {f"{i}.output.{j}": output for j, output in enumerate(outputs)}
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, path)


def _save_rows(inputs: tuple[Any, ...], path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves(inputs)
    if not isinstance(inputs, tuple) or not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise ExportError("`training_inputs` is a tuple of tensors, as `args` is, with many rows")
    save_file({str(i): leaf.detach().cpu().clone().contiguous() for i, leaf in enumerate(leaves)}, path)


def _copy_notices(notices: Sequence[str | os.PathLike[str]], directory: Path) -> None:
    for notice in map(Path, notices):
        if notice.name not in _NOTICES:
            raise ExportError(f"`{notice.name}` cannot travel in a package: only {', '.join(_NOTICES)} can")
        shutil.copyfile(notice, directory / notice.name)


def _describe_provenance(
    run_id: str | None,
    git_commit: str | None,
    lock: str | os.PathLike[str] | None,
    data: Mapping[str, str | os.PathLike[str]] | None,
    torch_version: str,
) -> dict[str, Any]:
    try:
        known: dict[str, Any] = {
            "run_id": run_id or _provenance.run_id(),
            "git_commit": git_commit or _provenance.git_commit(),
            "environment": _provenance.file_digest(lock) if lock is not None else None,
            "torch": torch_version,
            "data": _provenance.data_digests(data or {}),
        }
    except OSError as error:
        raise ExportError(f"cannot fingerprint `{error.filename}`: {error.strerror}") from error
    return {key: value for key, value in known.items() if value}


def _checked_roles(roles: Mapping[str, str], data: Mapping[str, Any]) -> dict[str, str]:
    for name, role in roles.items():
        if name not in data:
            raise ExportError(f"`data_roles` names `{name}`, which `data` does not")
        if role not in _ROLES:
            raise ExportError(f"the role of `{name}` is {role!r}, not one of {', '.join(_ROLES)}")
    return dict(sorted(roles.items()))


def _toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of nested tables; JSON's strings, numbers, booleans and lists are TOML's."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_toml_key(key)} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            path = f"{prefix}{_toml_key(key)}"
            lines.append(f"\n[{path}]\n{_toml(value, f'{path}.')}")
    return "".join(lines)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
