"""Was it launched as meant, and does the machine have what the options ask for?"""

import netrc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

import psutil
import torch

from tinybert_dist.config import UserError
from tinybert_dist.data.segmenters import SEGMENTERS
from tinybert_dist.data.text import BadRecords
from tinybert_dist.export.onnx_files import require_packages
from tinybert_dist.preflight.findings import Finding, error, ok, warning
from tinybert_dist.preflight.machine import cores, launched_as, processes
from tinybert_dist.preflight.subject import Subject
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.strategy import has_fast_bf16
from tinybert_dist.training.wandb_run import resolve_mode

START = "accelerate launch --config_file accelerate_configs/"
SHARE_THE_WORK = {"prepare_corpus"}  # takes its share from Slurm's variables, without a launcher
SMALL_SHM_BYTES = 128 << 20
# student: weights, gradients, two moments, float32; teacher: bf16 or float32; activations come on top
TRAINED_BYTES, TEACHER_BYTES = 16, 4


def check_world_size(subject: Subject) -> Iterator[Finding]:
    """As many processes work together as were started, and no GPU is forgotten."""
    world_size, tasks = processes.world_size, processes.slurm_tasks
    gpus = torch.cuda.device_count()
    if subject.is_launched and tasks > 1 and subject.stage not in SHARE_THE_WORK:
        if world_size == 1:
            yield error(
                f"srun started {tasks} tasks that do not know of one another: each would do all of the work, "
                "in the same folder.",
                f"Start one launcher per machine: {START}multi_node.yaml (launch/slurm/ does).",
            )
        elif world_size == processes.of_this_machine:
            yield error(
                f"srun started {tasks} tasks, and each launched {world_size} processes of its own: "
                f"{tasks} runs in the same folder instead of one.",
                f"Give each launcher --num_machines, --machine_rank and --main_process_ip ({START}"
                "multi_node.yaml; launch/slurm/ does).",
            )
    launch = launched_as() if subject.is_launched else None
    if launch is not None and launch.num_processes > 1 and world_size == 1:
        trap = (
            " The distributed_type MULTI_CPU starts one process unless mpirun is set up."
            if "MULTI_CPU" in launch.distributed_type
            else ""
        )
        yield error(
            f"accelerate launch was to start {launch.num_processes} processes "
            f"({launch.config_file or 'flags'}), and this one is alone.{trap}",
            f"Use {START}cpu_2_processes.yaml or multi_gpu.yaml with --num_processes {launch.num_processes}.",
        )
    if gpus and processes.of_this_machine > gpus:
        yield error(
            f"{processes.of_this_machine} processes on this machine and {gpus} visible GPUs.",
            f"Give --num_processes {gpus}, or make others visible (CUDA_VISIBLE_DEVICES, --gpus of Slurm).",
        )
    if subject.is_launched and world_size == 1 and gpus > 1 and isinstance(subject.config, TrainingOptions):
        yield warning(
            f"{gpus} GPUs are visible and one process was started: {gpus - 1} are idle.",
            f"{START}multi_gpu.yaml --num_processes {gpus} ..., or CUDA_VISIBLE_DEVICES=0 if one is meant.",
        )
    yield ok(f"processes: {world_size}, GPUs: {gpus}, cores: {cores()}")


def check_precision(subject: Subject) -> Iterator[Finding]:
    """bf16 is computed by this machine, not emulated."""
    if getattr(subject.config, "mixed_precision", "no") == "bf16":
        has_gpu = torch.cuda.is_available()
        if not has_fast_bf16(has_gpu, cpu_too=True):
            yield warning(
                f"--mixed_precision bf16: this {'GPU' if has_gpu else 'CPU'} only emulates it, several times "
                "slower than float32.",
                "Give --mixed_precision auto or no.",
            )


def check_workers(subject: Subject) -> Iterator[Finding]:
    """Loader workers and threads have cores, and shared memory for what they pass on."""
    config, here, have = subject.config, processes.of_this_machine, cores()
    workers = getattr(config, "num_workers", 0)
    started = here * workers if isinstance(config, TrainingOptions) else workers
    if started > have:
        yield warning(
            f"--num_workers {workers} makes {started} worker processes on this machine of {have} cores.",
            f"Give at most {max(1, have // here)}.",
        )
    if not torch.cuda.is_available() and isinstance(config, TrainingOptions):
        threads = torch.get_num_threads()
        if here > 1 and here * threads > 2 * have:
            yield warning(
                f"{here} processes of {threads} threads each on {have} cores.",
                f"Set OMP_NUM_THREADS={max(1, have // here)}.",
            )
    if workers and isinstance(config, TrainingOptions):
        yield from check_shared_memory()


def check_packages(subject: Subject) -> Iterator[Finding]:
    """Packages that these options need beyond the required ones."""
    config = subject.config
    if getattr(config, "teacher_sharding", "none") == "zero3" and find_spec("deepspeed") is None:
        yield error("--teacher_sharding zero3 needs deepspeed.", "pip install deepspeed, or use fsdp2.")
    if {"onnx", "int8"}.intersection(getattr(config, "formats", [])):
        require_packages("write ONNX, or give --formats transformers")
    if subject.stage == "augment":
        segmenter = SEGMENTERS[config.segmenter]()
        try:
            texts = [row[0] for _, row in zip(range(50), _augmented_texts(subject), strict=False)]
        except UserError:
            texts = []  # of which another check tells
        for text in texts if config.segmenter != "chinese" else [" "]:
            segmenter.split(text)  # raises UserError for Chinese words without jieba


def check_wandb(subject: Subject) -> Iterator[Finding]:
    """wandb can start in the mode asked for."""
    mode = resolve_mode(getattr(subject.config, "wandb_mode", "disabled"))
    yield from check_wandb_key(mode)
    yield ok(mode)


def check_memory(subject: Subject) -> Iterator[Finding]:
    """Weights, gradients and moments fit into the memory of a GPU."""
    config = subject.config
    if not torch.cuda.is_available() or not isinstance(config, TrainingOptions):
        return
    free, total = torch.cuda.mem_get_info()
    needed = TRAINED_BYTES * subject.trained.num_parameters
    if subject.teacher is not None and subject.teacher is not subject.trained:
        shares = processes.world_size if getattr(config, "teacher_sharding", "none") != "none" else 1
        needed += TEACHER_BYTES * subject.teacher.num_parameters // shares
    if needed > free:
        yield warning(
            f"about {needed / 2**30:.1f} GiB for weights and moments, {free / 2**30:.1f} GiB of the GPU free "
            f"(of {total / 2**30:.1f}).",
            "Give --teacher_sharding fsdp2, a strategy that divides (accelerate_configs/), or a free GPU.",
        )
    else:
        yield ok(f"about {needed / 2**30:.1f} GiB besides activations, {free / 2**30:.1f} GiB free")


def check_shared_memory() -> Iterator[Finding]:
    """Room in /dev/shm."""
    size = psutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else SMALL_SHM_BYTES
    if size < SMALL_SHM_BYTES:
        yield warning(
            f"/dev/shm holds {size >> 20} MiB: loader workers pass batches through it, and die when it is "
            "full.",
            "Start the container with --shm-size 1g (or --ipc host), or give --num_workers 0.",
        )


def check_wandb_key(mode: str) -> Iterator[Finding]:
    """A key, where one is needed."""
    if mode == "online" and not has_wandb_key():
        yield error(
            "wandb is to be online and there is no API key.",
            "Set WANDB_API_KEY or run `wandb login`; or give --wandb_mode offline (WANDB_MODE=offline) and "
            "`wandb sync` later.",
        )


def has_wandb_key() -> bool:
    """Whether wandb would find an API key: environment, or a login before."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _augmented_texts(subject: Subject) -> Iterator[list[str]]:
    rows = subject.augmented.rows(BadRecords("skip"))
    yield from ([row[column] for column in rows.text_columns] for row in rows.rows)
