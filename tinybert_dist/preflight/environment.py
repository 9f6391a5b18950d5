"""What can be told of a machine and its environment without a stage: the doctor alone."""

import os
import platform
import re
import socket
from collections.abc import Iterator
from importlib import metadata

import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from tinybert_dist.preflight.findings import Check, Finding, error, examine, ok, warning
from tinybert_dist.preflight.hub import hub_is_reachable
from tinybert_dist.preflight.launch_checks import check_shared_memory, check_wandb_key, has_wandb_key
from tinybert_dist.preflight.machine import cores, processes
from tinybert_dist.training.strategy import has_fast_bf16
from tinybert_dist.training.wandb_run import resolve_mode

SHOWN_PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "wandb")
LITTLE_SPACE_BYTES = 10 << 30
LAUNCHED = re.compile(r"^(WORLD_SIZE|RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|ACCELERATE_\w+)$")


def check_environment() -> list[Finding]:
    """Findings of all checks of this machine."""
    return examine(CHECKS, None)


def check_packages(_: object) -> Iterator[Finding]:
    """Every requirement is installed in a version that is tested."""
    shown = {name: metadata.version(name) for name in SHOWN_PACKAGES if _is_installed(name)}
    for text in metadata.requires("tinybert-dist") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = metadata.version(requirement.name) if _is_installed(requirement.name) else None
        if found is None:
            yield error(f"{requirement.name} is not installed.", f"pip install '{requirement}'.")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield warning(
                f"{requirement.name} {found} is not what this program is made for ({requirement.specifier}).",
                f"pip install '{requirement}'.",
            )
    yield ok(f"Python {platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in shown.items()))


def check_processor(_: object) -> Iterator[Finding]:
    """Cores, threads, memory, bf16."""
    memory = psutil.virtual_memory()
    bf16 = "with" if has_fast_bf16(False, cpu_too=True) else "without"
    yield ok(
        f"{cores()} cores {bf16} bf16, {torch.get_num_threads()} threads a process, "
        f"{memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB memory free"
    )
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    if threads > cores():
        yield warning(
            f"OMP_NUM_THREADS={threads} on {cores()} cores.", "Set it to cores / processes of a machine."
        )


def check_gpus(_: object) -> Iterator[Finding]:
    """GPUs, their driver and precision."""
    if torch.version.cuda is None:
        yield ok("none: this torch is built for CPUs")
        return
    if not torch.cuda.is_available():
        if os.path.exists("/proc/driver/nvidia/version"):
            yield error(
                "an NVIDIA driver is loaded and torch sees no GPU.",
                f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}; this torch needs "
                f"a driver for CUDA {torch.version.cuda} (nvidia-smi shows what it has).",
            )
        else:
            yield ok("none")
        return
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if has_fast_bf16(True, cpu_too=False) else "no bf16"
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        yield ok(f"{i}: {torch.cuda.get_device_name(i)}, {memory}, {bf16}")
        if free < total / 2:
            yield warning(
                f"GPU {i}: half of its memory is taken.", "See by whom (nvidia-smi), or choose another."
            )


def check_disk(_: object) -> Iterator[Finding]:
    """Room here, and shared memory for loader workers."""
    here = psutil.disk_usage(os.getcwd())
    yield ok(f"{here.free / 2**30:.0f} GiB free in this folder")
    if here.free < LITTLE_SPACE_BYTES:
        yield warning(
            f"{here.free / 2**30:.1f} GiB free in this folder.", "Give --output_dir on a larger disk."
        )
    yield from check_shared_memory()


def check_wandb(_: object) -> Iterator[Finding]:
    """Mode and key."""
    mode = resolve_mode("auto")
    key = "an API key" if has_wandb_key() else "no API key"
    yield ok(f"{mode} by default ({key})")
    yield from check_wandb_key(mode)


def check_hub(_: object) -> Iterator[Finding]:
    """Model hub: reachable, or offline with a cache."""
    reason = hub_is_reachable()
    cached = _cached_models()
    have = f"{len(cached)} models in the cache" + (f" ({', '.join(cached[:4])})" if cached else "")
    if reason is None:
        yield ok(f"reachable; {have}")
    elif constants.HF_HUB_OFFLINE:
        yield ok(f"offline by HF_HUB_OFFLINE; {have}")
    else:
        yield warning(
            f"not reachable ({reason}); {have}.",
            "Give models as folders, or set HF_HUB_OFFLINE=1 so that nothing waits for it.",
        )


def check_launcher(_: object) -> Iterator[Finding]:
    """Variables of launchers that reach into this shell, and the Slurm job around it."""
    if "SLURM_JOB_ID" in os.environ:
        nodes, tasks = (os.environ.get(f"SLURM_{name}", "1") for name in ("JOB_NUM_NODES", "NTASKS"))
        yield ok(f"in a Slurm job of {nodes} nodes, {tasks} tasks")
    left = sorted(name for name in os.environ if LAUNCHED.match(name))
    if processes.world_size > 1 and "RANK" not in os.environ:
        yield error(
            f"WORLD_SIZE={processes.world_size} is set in this shell without a launcher: stages would wait "
            "for processes that never come.",
            "unset WORLD_SIZE.",
        )
    elif left:
        yield ok(f"set here: {', '.join(f'{name}={os.environ[name]}' for name in left[:6])}")
    port = os.environ.get("MASTER_PORT", "")
    if port.isdigit() and "RANK" not in os.environ and _is_taken(int(port)):
        yield error(
            f"MASTER_PORT={port} is taken on this machine.", "unset MASTER_PORT, or choose a free one."
        )
    if not left and "SLURM_JOB_ID" not in os.environ:
        yield ok("no launcher's variables are set")


CHECKS: dict[str, Check] = {
    "packages": check_packages,
    "processor": check_processor,
    "GPUs": check_gpus,
    "disk": check_disk,
    "wandb": check_wandb,
    "model hub": check_hub,
    "launcher": check_launcher,
}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _cached_models() -> list[str]:
    try:
        names = os.listdir(constants.HF_HUB_CACHE)
    except OSError:
        return []
    return sorted(n.removeprefix("models--").replace("--", "/") for n in names if n.startswith("models--"))


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
