"""How often zero-shot classification names the module of a docstring, with and without calibration.

    python -m tools.heads.zero_shot [--model FOLDER] [--rows 20]

The bundled model has read about these modules; no head is trained. Eight modules, so chance is one in eight.
"""

import argparse
import random
from pathlib import Path

from mlx_qwen3 import ZeroShotClassification

from .data import docstrings

MODULES = ("math", "os", "threading", "json", "random", "datetime", "re", "socket")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a causal checkpoint; by default the bundled model")
    parser.add_argument("--rows", type=int, default=20, help="docstrings of a module, at most")
    options = parser.parse_args()
    rows = []
    for module in MODULES:
        texts = list(dict.fromkeys(docstrings(module)))
        random.Random(0).shuffle(texts)
        rows += [(text, module) for text in texts[: options.rows]]
    classify = ZeroShotClassification(options.model, candidate_labels=MODULES, hypothesis_template="import {}")
    print(f"| {len(rows)} docstrings, {len(MODULES)} modules | right |\n| --- | ---: |")
    for calibrate in (True, False):
        found = classify([text for text, _ in rows], calibrate=calibrate)
        right = sum(one["labels"][0] == module for one, (_, module) in zip(found, rows, strict=True))
        print(f"| {'calibrated' if calibrate else 'plain likelihood'} | {right / len(rows):.1%} |", flush=True)


if __name__ == "__main__":
    main()
