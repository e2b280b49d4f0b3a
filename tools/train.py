"""Train a network on a data set.

    python tools/train.py --config configs/semantic_kitti/spvcnn_cr0p5.yaml --data.root DIR [--any.key value ...]

Running the same command again goes on where the last run was stopped. --help lists the keys, --print_config their
values.
"""

from __future__ import annotations

import sys

from pointlib.engine import train
from pointlib.ops.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(train())
