"""Datasets of the hub, streamed through `datasets`: hub:NAME[:CONFIG[:SPLIT]], shard by shard."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinybert_dist.config import UserError
from tinybert_dist.data.storage import described
from tinybert_dist.files import fingerprint

SPLIT = "train"


def find_shards(address: str, what: str) -> list[tuple[str, str, int, str]]:
    """(path, name, size in bytes: unknown, version) of each shard. Raises UserError when there is none."""
    dataset_name, config, split = _parsed(address, what)
    try:
        builder, dataset = _load(dataset_name, config, split)
    except Exception as error:  # of the hub, of the network, of the dataset's builder
        raise UserError(
            f"{what} {address}: {described(error)}. Give hub:NAME[:CONFIG[:SPLIT]] as on the dataset's page; "
            "a private one needs `hf auth login`."
        ) from None
    version = _version(builder, split)
    # a local folder may stand for a name, and its path is nobody's business
    short = Path(dataset_name).name if Path(dataset_name).exists() else dataset_name
    label = ":".join(["hub", short, *([config] if config else []), split])
    count = dataset.num_shards
    path = f"hub:{dataset_name}:{config or ''}:{split}"
    return [(f"{path}#{i}/{count}", f"{label}-{i:05d}-of-{count:05d}", 0, version) for i in range(count)]


def shard_version(path: str) -> str:
    """The version of the dataset that this process reads the shard from."""
    dataset_name, config, split = _parsed(path.rpartition("#")[0], "--train_file_path")
    return _version(_load(dataset_name, config, split)[0], split)


def read_shard(path: str, name: str, skip: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(1-based row, row) of a shard that find_shards named, from row `skip` + 1 on.

    Raises ConnectionError when the dataset cannot be read on.
    """
    address, _, place = path.rpartition("#")
    index, count = map(int, place.split("/"))
    position = skip
    try:
        shard = _load(*_parsed(address, "--train_file_path"))[1].shard(count, index)
        for position, row in enumerate(shard.skip(skip) if skip else shard, start=skip + 1):
            yield position, row
    except Exception as error:  # of the hub, of the network, of the file format
        raise ConnectionError(f"{name}: after row {position}: {described(error)}") from None


@functools.lru_cache(maxsize=4)
def _load(dataset_name: str, config: str | None, split: str) -> tuple[Any, Any]:
    from datasets import load_dataset_builder

    # what load_dataset(..., streaming=True) does; the builder also knows which files it reads
    builder = load_dataset_builder(dataset_name, config)
    return builder, builder.as_streaming_dataset(split=split)


def _version(builder: Any, split: str) -> str:
    data_files = (builder.config.data_files or {}).get(split)
    # the hub's paths hold the revision, and local files come with their times
    return fingerprint([builder.hash, data_files, getattr(data_files, "origin_metadata", None)])


def _parsed(address: str, what: str) -> tuple[str, str | None, str]:
    parts = address.removeprefix("hub:").split(":")
    if not parts[0] or len(parts) > 3:
        raise UserError(f"{what} {address}: give hub:NAME[:CONFIG[:SPLIT]].")
    dataset_name, config, split = [*parts, "", ""][:3]
    return dataset_name, config or None, split or SPLIT
