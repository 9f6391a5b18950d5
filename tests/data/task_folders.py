"""Task folders of a test's own, and what is loaded from them."""

from pathlib import Path

from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords


def load(folder, *splits, policy="error", **options):
    bad = BadRecords(policy)
    data = load_task(TaskOptions(data_dir=str(folder), **options), bad, splits or ("train", "dev"))
    return data, bad


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(content, encoding="utf-8")
    return folder


def tsv(*rows: str) -> str:
    return "".join(row.replace("|", "\t") + "\n" for row in rows)
