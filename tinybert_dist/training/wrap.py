"""Chooses how the module is trained: by the strategy the launcher's configuration asks for."""

from accelerate.utils import DistributedType

from tinybert_dist.distill.modules import LossModule
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.strategy import RunAccelerator
from tinybert_dist.training.trained import Trained


def wrap(accelerator: RunAccelerator, module: LossModule, options: TrainingOptions) -> Trained:
    """The module under the launcher's strategy. Collective."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from tinybert_dist.training.zero import ZeroTrained  # imports deepspeed: seconds

        return ZeroTrained(accelerator, module, options)
    return Trained(accelerator, module, options)
