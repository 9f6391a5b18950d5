"""Optimizer steps of a stage, one at a time: built by the stage from its command line, as a run would."""

import pytest

from tinybert_dist.config import parse
from tinybert_dist.stages import general_distill, task_distill
from tinybert_dist.training.loop import TrainingLoop
from tinybert_dist.training.run_folder import RunFolder
from tinybert_dist.training.window import Window

CONFIGS = {
    general_distill: general_distill.GeneralDistillConfig,
    task_distill: task_distill.TaskDistillConfig,
}


def job_of(stage, **options):
    """The Job that a command line leads to, not trained."""
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value)) if word != "True"]
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "train", jobs.append)
        stage.run(parse(CONFIGS[stage], [*argv, "--wandb_mode", "disabled"]))
    return jobs[0]


class Steps:
    """The loop's steps over a job, from the fetching of a batch to the move of the optimizer."""

    def __init__(self, job):
        folder = RunFolder(job.options.output_dir, job.stage, job.options, job.inputs)
        job.targets = job.make_targets()
        self.loop = TrainingLoop(job, folder, None)
        self.window = Window(job.module.term_weights)
        self._shares = self.loop.feed.shares(0, self.loop.total_steps)

    def __next__(self):
        """One step; returns its share."""
        share = next(self._shares)
        self.loop.optimizer_step(share, self.window, False)
        self.loop.step += 1
        return share
