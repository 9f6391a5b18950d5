"""A general distillation whose gradients do not meet: unsynchronised.py FAULT ARGUMENT...

bypass: the student is called past its wrapper; left_out: a projection is not part of what is wrapped.
"""

import sys

import torch.distributed.fsdp
from torch.nn.parallel import DistributedDataParallel

from tinybert_dist.stages import general_distill
from tinybert_dist.training.trained import Trained

LEFT_OUT = ["projections.0.weight", "projections.0.bias"]


def bypass(self, *arguments):
    return self.module(*arguments)


def leave_out(self, optimizer):
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.live, LEFT_OUT)
    left_out = {self.live.get_parameter(name) for name in LEFT_OUT}
    whole = torch.distributed.fsdp.fully_shard

    def fully_shard(module, **options):
        return whole(module, **options | {"ignored_params": left_out})

    torch.distributed.fsdp.fully_shard = fully_shard
    return prepare(self, optimizer)


prepare = Trained._prepare
if sys.argv[1] == "bypass":
    Trained.__call__ = bypass
else:
    Trained._prepare = leave_out
general_distill.main(sys.argv[2:])
