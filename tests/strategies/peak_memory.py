"""A general distillation that writes how much memory each process used while it trained.

peak_memory.py OUTPUT_DIR ARGUMENT...: OUTPUT_DIR/peak_RANK.txt in bytes, sampled every 5 ms.
"""

import os
import re
import sys
import threading
import time
from pathlib import Path

from tinybert_dist.stages import general_distill

folder, samples = Path(sys.argv[1]), [0]


def own_memory():
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def sample():
    while True:
        if (folder / "metrics.jsonl").exists():
            samples.append(own_memory())
        time.sleep(0.005)


threading.Thread(target=sample, daemon=True).start()
general_distill.main([*sys.argv[2:], "--output_dir", str(folder)])
(folder / f"peak_{os.environ['RANK']}.txt").write_text(f"{max(samples)}\n")
