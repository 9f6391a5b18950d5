"""Every file operation of a piece of code, counted, with a fault at the one that is asked for."""

import builtins
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from tinybert_dist.training import checkpoint

NAMES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


def die():
    """As `kill -9`, a power cut aside: nothing of this process runs after it."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FileOperations:
    """With it, operation number `fault_at` is begun and then `fault` comes; `done` names those before it."""

    def __init__(self, fault_at: int | None, fault: Callable[[], None]):
        self.fault_at, self.fault, self.done = fault_at, fault, []

    def __enter__(self):
        real_open, real_save = builtins.open, checkpoint.save_file
        self.patches = [patch.object(os, name, self._counted(name, getattr(os, name))) for name in NAMES]

        def opened(file, mode="r", *a, **k):
            if "w" not in mode:
                return real_open(file, mode, *a, **k)
            self._operation(f"open {Path(file).name}")
            stream = real_open(file, mode, *a, **k)
            return _Stream(stream, self)

        def save(tensors, file):
            self._operation(f"create {file.name}", file.touch)
            real_save(tensors, file)
            # safetensors writes outside of Python: what its death in the middle leaves is half a file
            self._operation(f"write {file.name}", lambda: os.truncate(file, file.stat().st_size // 2))

        self.patches += [patch.object(builtins, "open", opened), patch.object(checkpoint, "save_file", save)]
        for each in self.patches:
            each.start()
        return self

    def __exit__(self, *exception):
        for each in self.patches:
            each.stop()

    def _counted(self, name, real):
        def operation(path, *a, **k):
            file = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
            self._operation(f"{name} {Path(file).name}")
            return real(path, *a, **k)

        return operation

    def _operation(self, name, begin=lambda: None):
        if len(self.done) == self.fault_at:
            self.fault_at = None  # once
            begin()
            self.fault()
        self.done.append(name)


class _Stream:
    """A file opened for writing whose writes are operations, too; a fault leaves half of one."""

    def __init__(self, stream, operations):
        self.stream, self.operations = stream, operations

    def write(self, data):
        def half():
            self.stream.write(data[: len(data) // 2])
            self.stream.flush()

        self.operations._operation(f"write {Path(self.stream.name).name}", half)
        return self.stream.write(data)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stream.close()
