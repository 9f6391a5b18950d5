"""Where the time of an optimizer step goes. The loop announces its phases; the student's base model tells
where a forward becomes the student's, and where the losses begin.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tinybert_dist.benchmark.measure import Unit
from tinybert_dist.training.heartbeat import progress
from tinybert_dist.training.strategy import RunAccelerator

# By what announces them. "teacher": its forward, or in step 2 the look-up of what it predicted; "loss": with
# heads and projections; "backward": with the gradients' way to the other processes; "sync": what they tell
# one another beside that.
PHASES = {
    "fetch": "data",
    "forward": "teacher",
    "student": "student",
    "loss": "loss",
    "backward": "backward",
    "reduce": "sync",
    "optimize": "optimizer",
}


class Phases:
    """Adds up the seconds of every phase. It waits for a GPU at every mark: not for measuring throughput."""

    def __init__(self, device: torch.device):
        self._device = device
        self.seconds = dict.fromkeys(PHASES.values(), 0.0)
        self._phase, self._since = "", 0.0

    def mark(self, announced: str) -> None:
        """The phase before ends here; what nobody knows the name of goes on as the phase it is in."""
        if announced and announced not in PHASES:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = PHASES.get(announced, ""), now

    @contextmanager
    def heard(self, model: nn.Module) -> Iterator[None]:
        """Listens to the loop, and to `model` as the student's base model."""
        hooks = [
            model.register_forward_pre_hook(lambda *_: self.mark("student")),
            model.register_forward_hook(lambda *_: self.mark("loss")),
        ]
        progress.listener = self.mark
        try:
            yield
            self.mark("")
        finally:
            progress.listener = None
            for hook in hooks:
                hook.remove()


def seconds_by_phase(
    step: Unit, model: nn.Module, accelerator: RunAccelerator, repeats: int
) -> dict[str, float]:
    """Of one step in the mean, over all processes; model: the base model that is trained. Collective."""
    phases = Phases(accelerator.device)
    accelerator.wait_for_everyone()
    with phases.heard(model):
        for _ in range(repeats):
            step()
    own = torch.tensor(list(phases.seconds.values()), dtype=torch.float64, device=accelerator.device)
    means = accelerator.reduce(own, "mean") / repeats
    return dict(zip(phases.seconds, means.tolist(), strict=True))
