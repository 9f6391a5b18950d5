"""task_distill with blocks of 64 kept logits: small_blocks.py ARGUMENT..."""

import sys

from tinybert_dist.stages import task_distill
from tinybert_dist.training import targets

targets.BLOCK_ROWS = 64
task_distill.main(sys.argv[1:])
