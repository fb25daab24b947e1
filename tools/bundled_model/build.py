"""From facts to the bundled checkpoint: train, calibrate, convert, examine.

Usage: python -m tools.bundled_model.build WORK [--skip-training] [training options]

WORK receives the checkpoint and its conversion; copying them to tools/bundled_model/checkpoint and to
mlx_qwen3/bundled is left to a person who has read the figures.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from . import calibrate, evaluate, train

BITS, GROUP_SIZE = 6, 64
CONVERT = Path(__file__).parents[2] / "convert.py"


def convert(source, target, bits=BITS):
    """Pack a checkpoint with this repository's converter."""
    command = [sys.executable, str(CONVERT), "--hf-path", str(source), "--mlx-path", str(target), "--force"]
    command += ["-q", "--q-bits", str(bits), "--q-group-size", str(GROUP_SIZE), "--no-report"]
    subprocess.run(command, check=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--skip-training", action="store_true", help="WORK/checkpoint is trained already")
    parser.add_argument("--limit", type=int, help="teach only so many names (for a trial)")
    parser.add_argument("--questions", type=int, nargs=3, default=(500, 200, 200), help="known, made-up, other")
    args, training = parser.parse_known_args(arguments)
    checkpoint, packed = args.work / "checkpoint", args.work / "packed"
    limit = [] if args.limit is None else ["--limit", str(args.limit)]
    if not args.skip_training:
        train.main([str(checkpoint), *limit, *training])
        calibrate.calibrate(checkpoint, min(calibrate.CALIBRATION_NAMES, args.limit or 10**6), args.limit)
    convert(checkpoint, packed)
    known, unknown, other = map(str, args.questions)
    counts = ["--names", known, "--unknown", unknown, "--other", other]
    evaluate.main([str(checkpoint), str(packed), *counts, *limit])


if __name__ == "__main__":
    main()
