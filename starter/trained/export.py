"""Export the trained model as a package source. `highroad export` starts this, then packs and proves the result.

What is the model's own (task, labels, tokenizer, parity cases) is in model.py.
"""

import argparse
from pathlib import Path

import highroad
from highroad import training

import data
import model as models

STANDARD = highroad.standard()


def main() -> None:
    packaging = STANDARD["packaging"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path(STANDARD["training"]["output"]), help="what training wrote")
    parser.add_argument("--path", type=Path, default=Path("runs/package"), help="package source to write")
    options = parser.parse_args()

    cases = models.parity_cases()
    highroad.export(
        training.load_weights(models.fresh(), options.weights / "model.safetensors"),
        cases[-1],
        options.path,
        name=STANDARD["model"]["name"],
        max_tokens=packaging.get("max_tokens"),
        parity_inputs=cases,
        relative_rms=packaging["relative_rms"],
        licence=STANDARD["model"]["licence"],
        owner=STANDARD["model"]["owner"],
        data=data.files(),
        data_roles=data.roles(),
        lock=STANDARD["environment"]["lock"],
        **models.package(),
    )


if __name__ == "__main__":
    main()
