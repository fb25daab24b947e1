"""`python -m mlx_qwen3` is `mlx-qwen3`."""

import sys

from .cli import main

sys.exit(main())
