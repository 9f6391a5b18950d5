"""The export's folder: whose it is, and how a new one takes the place of an old one in one step."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinybert_dist.config import UserError
from tinybert_dist.files import fsync_folder
from tinybert_dist.model_files import replaced_folder

RECORD = "export.json"
TRACKING = "wandb"  # runs of earlier exports, perhaps not uploaded yet


def refuse_strangers(folder: Path, model: Path) -> None:
    """Raises UserError for a folder that holds something no export wrote, the model itself included."""
    if folder.resolve() == model.resolve():
        raise UserError(f"--output_dir {folder} is the model's own folder. Give another one.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file. Give a new folder.")
    if folder.is_dir() and not (folder / RECORD).is_file():
        if any(file.name != TRACKING for file in folder.iterdir()):
            raise UserError(
                f"--output_dir {folder} is not empty and no export made it; give a new or empty folder"
            )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `folder` at the end; after an error nothing has changed.

    A crash leaves the old folder, or the new one, or, between two renames, the old one under its other name,
    from which the next export brings it back.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = replaced_folder(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for left in (partial, replaced):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if (folder / TRACKING).is_dir():
            shutil.copytree(folder / TRACKING, partial / TRACKING, symlinks=True)
        _fsync(partial)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        fsync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _fsync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
