"""The benchmark stage in processes of which one has little memory left when it starts to measure.

little_memory.py RANK MEGABYTES ARGUMENT...: the address space of process RANK may grow by so much.
"""

import resource
import sys

import psutil

from tinybert_dist.benchmark.run import Benchmark
from tinybert_dist.stages import benchmark


def limited(original):
    def run(self):
        if self.accelerator.process_index == int(sys.argv[1]):
            used = psutil.Process().memory_info().vms
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[2]) << 20), hard))
        return original(self)

    return run


Benchmark.run = limited(Benchmark.run)
benchmark.main(sys.argv[3:])
