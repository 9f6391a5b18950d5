"""This machine, and how this process was started on it."""

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import psutil


class Processes:
    """What the environment says about the processes of this launch; read when asked."""

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def of_this_machine(self) -> int:
        """Those of them that share its cores and its memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))

    @property
    def rank(self) -> int:
        """Number of this one."""
        return int(os.environ.get("RANK", "0"))

    @property
    def slurm_tasks(self) -> int:
        """Tasks of the Slurm step; 1 outside of srun (a batch script by itself is one process)."""
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_PROCID" in os.environ else 1


processes = Processes()


class Launch(NamedTuple):
    """What the accelerate launch above this process was asked to start."""

    num_processes: int
    distributed_type: str
    config_file: str


def launched_as() -> Launch | None:
    """From the command line of a parent process; None when it is no `accelerate launch`."""
    for command in _command_lines_above():
        if (arguments := _arguments_of_launch(command)) is not None:
            return _parsed(arguments)
    return None


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _command_lines_above() -> Iterator[list[str]]:
    try:
        for process in psutil.Process().parents()[:3]:
            yield process.cmdline()
    except psutil.Error:
        return


def _arguments_of_launch(command: list[str]) -> list[str] | None:
    for i, word in enumerate(command[:5]):
        name = os.path.basename(word)
        if name in {"accelerate", "accelerate.exe"} and command[i + 1 : i + 2] == ["launch"]:
            return command[i + 2 :]
        if name in {"accelerate-launch", "accelerate.commands.launch"}:
            return command[i + 1 :]
    return None


def _parsed(arguments: list[str]) -> Launch | None:
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        given, _ = launch_command_parser().parse_known_args(arguments)
    except SystemExit:  # argparse's way to refuse
        return None
    file = given.config_file or (default_config_file if os.path.isfile(default_config_file) else None)
    config = load_config_from_file(file) if file and os.path.isfile(file) else None
    kind = getattr(config, "distributed_type", "NO")
    asked = given.num_processes or getattr(config, "num_processes", None) or 1
    return Launch(int(asked), str(getattr(kind, "value", kind)), str(file or ""))
