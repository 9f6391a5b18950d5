"""How a step is run: in this process, or by a launcher that is passed the signals of this one."""

import contextlib
import gc
import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from tinybert_dist.config import UserError
from tinybert_dist.pipeline.recipe import Step


def stage_main(step: Step) -> Callable[[list[str]], Any]:
    """The command line entry of the step's stage."""
    return importlib.import_module(f"tinybert_dist.stages.{step.stage}").main


def run_launched(command: Sequence[str]) -> int | None:
    """Exit code, None when asked to stop meanwhile: the request is passed on, and its save waited for."""
    processes: list[subprocess.Popen] = []
    workers: list[psutil.Process] = []
    asked = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for process in processes:
            # a launcher of one process, or one signalled twice, dies before its workers have saved
            with contextlib.suppress(psutil.NoSuchProcess):
                workers.extend(psutil.Process(process.pid).children(recursive=True))
            process.send_signal(signal.SIGTERM)  # of SIGUSR1 a launcher dies

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        with subprocess.Popen(command) as process:
            processes.append(process)
            if asked:
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            while any(map(_is_alive, workers)):
                time.sleep(0.1)
    except FileNotFoundError as error:
        raise UserError(
            f"--launcher: the program {command[0]!r} was not found. Activate its environment."
        ) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return None if asked else code


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_here(step: Step) -> int:
    """Exit code."""
    reset_process()
    try:
        stage_main(step)(step.argv)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        reset_process()
    return 0


def reset_process() -> None:
    """As a fresh process would start: accelerate keeps its state in singletons, which outlive a stage."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)  # PartialState too
        GradientState._reset_state()
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
