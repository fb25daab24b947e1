"""`python convert.py ...` is `mlx-qwen3 convert ...`."""

import sys

from mlx_qwen3.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
