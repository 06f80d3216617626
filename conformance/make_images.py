"""Makes small pictures and what Pillow and torchvision turn them into, and a tiny package that sees, for the Rust tests.

    python conformance/make_images.py

`images/cases.json` says for each case the file and the parameters of a package's manifest; `images/expected.safetensors` holds the
`pixel_values` that torchvision's transforms on Pillow's picture give, f32 `[channels, height, width]`. Running it again gives
the same bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

HERE = Path(__file__).parent
ROOT = HERE / "images"
HALF = {"mean": [0.5], "std": [0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SMALL = {"height": 16, "width": 12}
EXACT = SMALL | {"resize": "exact"} | IMAGENET
LABELS = ["dark", "red", "green", "blue"]


def scene(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours, edges and noise, so that filters, rounding and clipping all show."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (3 + i) + i) * np.cos(y / (4 - i)) for i in range(3)]
    pixels = np.stack(waves, -1) + np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    pixels[(x // 9 + y // 7) % 4 == 1] = (255, 250, 5)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_pictures() -> None:
    ROOT.mkdir(exist_ok=True)
    photo = scene(61, 47, 0)
    photo.save(ROOT / "photo.png", optimize=True)
    photo.convert("L").save(ROOT / "grey.png", optimize=True)
    photo.convert("1").save(ROOT / "bits.png", optimize=True)
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257 - 3).save(ROOT / "deep.png", optimize=True)
    photo.quantize(16).save(ROOT / "palette.png", optimize=True, transparency=3)
    alpha = Image.fromarray(np.tile(np.arange(61, dtype=np.uint8) * 4, (47, 1)))
    (clear := photo.copy()).putalpha(alpha)
    clear.save(ROOT / "alpha.png", optimize=True)
    scene(400, 3, 1).save(ROOT / "thin.png", optimize=True)
    scene(20, 90, 7).save(ROOT / "tall.png", optimize=True)
    scene(5, 7, 2).save(ROOT / "small.png", optimize=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        scene(14, 9, 3).save(ROOT / f"turned-{orientation}.png", optimize=True, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(ROOT / "photo.jpg", quality=92, subsampling="4:2:0", exif=exif)
    photo.save(ROOT / "full.jpg", quality=92, subsampling="4:4:4")
    photo.save(ROOT / "progressive.jpg", quality=85, progressive=True)
    photo.convert("L").save(ROOT / "grey.jpg", quality=90)
    photo.convert("CMYK").save(ROOT / "cmyk.jpg", quality=80)
    photo.save(ROOT / "lossless.webp", lossless=True)
    photo.save(ROOT / "lossy.webp", quality=80)
    clear.save(ROOT / "alpha.webp", lossless=True)
    frames = [scene(9, 9, seed) for seed in (4, 5)]
    frames[0].save(ROOT / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(ROOT / "animated.webp", save_all=True, append_images=frames[1:])
    (ROOT / "bomb.png").write_bytes(bomb(60_000))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims `side` rows and columns."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def cases() -> list[tuple[str, dict]]:
    """File and parameters."""
    bilinear, bicubic = {"interpolation": "bilinear"}, {"interpolation": "bicubic"}
    shortest = lambda edge: SMALL | {"resize": {"shortest_edge": edge}} | IMAGENET  # noqa: E731
    found = [("photo.png", EXACT | kind) for kind in (bilinear, bicubic)]
    found += [("photo.png", shortest(edge) | kind) for edge in (16, 19, 40) for kind in (bilinear, bicubic)]
    found += [("small.png", EXACT | kind) for kind in (bilinear, bicubic)]
    # Where more than twice as many rows as columns are left off, Pillow 13 changes the height first.
    found += [("tall.png", EXACT | bicubic), ("tall.png", shortest(17) | bilinear)]
    found += [("thin.png", EXACT | bicubic), ("thin.png", shortest(17) | bilinear)]
    found += [("photo.png", EXACT | bicubic | {"channels": "bgr", "rescale": 1.0, "mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]})]
    found += [("photo.png", SMALL | {"resize": "exact", "channels": "grey"} | bicubic | HALF)]
    found += [("photo.png", {"height": 47, "width": 61, "resize": "none"} | bilinear | IMAGENET)]
    found += [(name, EXACT | bilinear) for name in ("grey.png", "bits.png", "palette.png", "alpha.png", "lossless.webp", "lossy.webp", "alpha.webp")]
    found += [("deep.png", EXACT | bilinear), ("grey.png", SMALL | {"resize": "exact", "channels": "grey"} | bilinear | HALF)]
    found += [(f"turned-{orientation}.png", EXACT | bilinear) for orientation in range(1, 9)]
    found += [("turned-6.png", EXACT | bilinear | {"orientation": "stored"})]
    found += [(name, EXACT | bicubic) for name in ("photo.jpg", "full.jpg", "progressive.jpg", "grey.jpg")]
    return found


def pixel_values(name: str, image: dict) -> torch.Tensor:
    picture = Image.open(ROOT / name)
    if picture.mode == "I;16":
        # Pillow cuts what is over 255 off; the high byte is the picture.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if image.get("orientation", "exif") == "exif":
        picture = ImageOps.exif_transpose(picture)
    picture = picture.convert("L" if image.get("channels") == "grey" else "RGB")
    size = (image["height"], image["width"])
    kind = InterpolationMode(image["interpolation"])
    if image["resize"] == "exact":
        picture = transforms.Resize(size, kind)(picture)
    elif image["resize"] != "none":
        picture = transforms.CenterCrop(size)(transforms.Resize(image["resize"]["shortest_edge"], kind)(picture))
    pixels = transforms.PILToTensor()(picture)
    if image.get("channels") == "bgr":
        pixels = pixels.flip(0)
    values = pixels.float() * image["rescale"] if "rescale" in image else pixels.float() / 255
    return transforms.Normalize(image["mean"], image["std"])(values).contiguous()


class Tiny(nn.Module):
    """Logits `[B, 4]` of dark, red, green and blue for `pixel_values` `[B, 3, 16, 12]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 1, bias=False)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        texture = self.head(torch.relu(self.norm(self.conv(pixel_values))).mean((2, 3)))
        colours = pixel_values.mean((2, 3))
        return torch.cat([-colours.amax(1, keepdim=True), colours], 1) * 4 + texture


def make_package() -> None:
    source = HERE / "packages" / "vision"
    source.mkdir(exist_ok=True)
    torch.manual_seed(5)
    module = Tiny().eval()
    noise = torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(6))
    inputs = [torch.zeros(1, 3, 16, 12), noise]
    with torch.no_grad():
        tensors = {f"{i}.output.0": module(pixels) for i, pixels in enumerate(inputs)}
        program = torch.export.export(module, (noise,), dynamic_shapes=({0: torch.export.Dim("batch", max=1024)},), strict=False)
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    torch.export.save(program, source / "program.pt2")
    save_file(tensors | {f"{i}.input.0": pixels for i, pixels in enumerate(inputs)}, source / "parity.safetensors")
    (source / "package.toml").write_text(
        f"""\
name = "tiny-vision"
licence = "Apache-2.0"
owner = "highroad tests"

[task]
task = "classify"
labels = {json.dumps(LABELS)}

[task.image]
height = 16
width = 12
resize = {{ shortest_edge = 18 }}
interpolation = "bilinear"
mean = {IMAGENET["mean"]}
std = {IMAGENET["std"]}
"""
    )


def main() -> None:
    make_pictures()
    numbered = list(enumerate(cases()))
    (ROOT / "cases.json").write_text(json.dumps([{"file": name, "image": image} for _, (name, image) in numbered], indent=1) + "\n")
    save_file({str(i): pixel_values(name, image) for i, (name, image) in numbered}, ROOT / "expected.safetensors")
    make_package()


if __name__ == "__main__":
    main()
