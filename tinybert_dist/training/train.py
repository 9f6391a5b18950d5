"""From a Job to a finished run folder: claim or resume, train, write the outputs, say how it ended."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tinybert_dist.config import StageFailed, UserError
from tinybert_dist.data.batches import worker_failure
from tinybert_dist.training.checkpoint import Checkpoint, Checkpoints
from tinybert_dist.training.health import StopRequest, TrainingFailed, undisturbed
from tinybert_dist.training.heartbeat import beat, progress
from tinybert_dist.training.job import Job
from tinybert_dist.training.loop import TrainingLoop
from tinybert_dist.training.progress import readable_count
from tinybert_dist.training.run_folder import RunFolder
from tinybert_dist.training.strategy import on_main
from tinybert_dist.training.telling import after, before, lines
from tinybert_dist.training.tracking import Tracker
from tinybert_dist.training.watchdog import Watchdog

MEASURED_S = 1.0


def train(job: Job) -> dict[str, Any]:
    """Runs a job, resuming what its folder holds; returns what outcome.json says. Collective.

    Raises UserError when the folder is another run's, TrainingFailed when the run cannot go on.
    """
    say = print if job.accelerator.is_main_process else _silent
    # as resolved: "auto" on another machine may be another precision
    inputs = job.inputs | {"mixed_precision": job.accelerator.precision}
    folder = RunFolder(job.options.output_dir, job.stage, job.options, inputs)
    if job.options.dry_run:
        job.targets = job.make_targets()
        loop = TrainingLoop(job, folder, None)
        rate = readable_count(loop.feed.delivery_rate(MEASURED_S))
        alone = {"loader alone": f"{rate} real tokens/s with one core"}
        say("\n".join(lines(before(job, loop) | alone)))
        return {"outcome": "dry_run"}
    try:
        folder.attempt.token = on_main(job.accelerator, folder.claim)
        if outcome := on_main(job.accelerator, folder.finished):
            say(f"{job.stage}: {folder.path} is already finished (step {outcome['step']}); nothing to do")
            return outcome
        accelerator, limit_s = job.accelerator, job.options.hang_timeout_s
        with (
            Watchdog(folder, accelerator.process_index, accelerator.num_processes, limit_s) as watchdog,
            ExitStack() as until_recorded,
        ):
            try:
                outcome = _train(job, folder, say, until_recorded)
                job.accelerator.free_memory()  # the optimizer's: another job may follow
                return outcome
            except Exception as error:
                with undisturbed():
                    _fail(job, folder, watchdog, worker_failure(error) or error)
                raise
    finally:
        folder.attempt.release()


def _train(
    job: Job, folder: RunFolder, say: Callable[..., None], until_recorded: ExitStack
) -> dict[str, Any]:
    checkpoint = _newest_checkpoint(job, folder)
    # a job that is gone while this stands there was killed as a whole
    on_main(job.accelerator, folder.end, "running", checkpoint.step if checkpoint else 0)
    job.targets = job.make_targets()
    loop = TrainingLoop(job, folder, checkpoint)
    say("\n".join(lines(before(job, loop))))
    # signals are repeated, and launchers end what is left when one process died: not before it is recorded
    stop = until_recorded.enter_context(StopRequest(folder.path / "STOP", job.options.max_seconds))
    tracker = until_recorded.enter_context(
        Tracker(
            job.options,
            job.stage,
            folder.path,
            job.accelerator.is_main_process,
            folder.identity,
            resume_step=loop.step,
        )
    )
    for option, model in job.models.items():
        tracker.use_model(option, model)
    stop_reason = loop.run(stop, tracker)
    if stop_reason:
        say(f"{job.stage}: stopped at step {loop.step} ({stop_reason}); the same command resumes")
        say("\n".join(lines(after(job, folder, loop, tracker, is_finished=False))))
        return on_main(job.accelerator, folder.end, "interrupted", loop.step, stop_reason)
    result = loop.evaluated
    if job.keep == "best" and loop.best:
        job.module.load_state_dict(loop.checkpoints.open(loop.best["step"]).parameters())
        result = loop.best
    else:
        loop.trained.publish()
    job.module.eval()
    result = {"step": loop.step, **result}
    beat("outputs")
    job.write_outputs(folder.path, result)
    tracker.log_predictions(folder.path)
    tracker.log_model(folder.path, result)
    beat("wait")
    job.accelerator.wait_for_everyone()
    say(f"{job.stage}: finished at step {loop.step}; model in {folder.path}")
    say("\n".join(lines(after(job, folder, loop, tracker, is_finished=True))))
    return on_main(job.accelerator, lambda: folder.end("finished", loop.step, result=result))


def _fail(job: Job, folder: RunFolder, watchdog: Watchdog, error: Exception) -> None:
    """Records who failed first; raises what tells it better than what reached this process."""
    failure = watchdog.cause_of(error)
    folder.fail(failure, progress.step)
    watchdog.end_soon()
    if isinstance(error, (UserError, StageFailed)):
        raise error
    if failure.process != job.accelerator.process_index:
        raise TrainingFailed(failure.reason) from error


def _newest_checkpoint(job: Job, folder: RunFolder) -> Checkpoint | None:
    path, keep = folder.path / "checkpoints", job.options.keep_checkpoints
    checkpoints = Checkpoints(path, keep, identity=folder.identity)
    newest = on_main(job.accelerator, checkpoints.newest)  # one process decides for all
    if newest and job.accelerator.is_main_process:
        print(f"{job.stage}: resuming {folder.path} from step {newest.step}")
    return newest


def _silent(*arguments: object) -> None:
    pass
