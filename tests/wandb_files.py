"""Reads wandb's offline files back: LevelDB log framing (32 KiB blocks, CRC-32) around protobuf records."""

import json
import struct
import zlib
from pathlib import Path

BLOCK = 32768
HEADER_BYTES = 7
FULL, FIRST, LAST = 1, 2, 4


def run_files(folder: Path) -> list[Path]:
    return sorted(Path(folder).rglob("run-*.wandb"))


def records(path: Path) -> list:
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B", path
    found, position, body = [], HEADER_BYTES, b""
    while position + HEADER_BYTES <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER_BYTES:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0 and length == 0:
            position += left
            continue
        part = data[position + HEADER_BYTES : position + HEADER_BYTES + length]
        assert zlib.crc32(bytes([kind]) + part) == checksum, "damaged record"
        position += HEADER_BYTES + length
        body = part if kind in (FULL, FIRST) else body + part
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            found.append(record)
    return found


def _items(entries) -> dict:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def history(path: Path) -> list[dict]:
    return [_items(r.history.item) for r in records(path) if r.WhichOneof("record_type") == "history"]


def runs(path: Path) -> list:
    return [r.run for r in records(path) if r.WhichOneof("record_type") == "run"]


def config(path: Path) -> dict:
    """As it is after all updates."""
    found: dict = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            found.update(_items((record.run.config if kind == "run" else record.config).update))
    return found


def summary(path: Path) -> dict:
    found: dict = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found.update(_items(record.summary.update))
    return found


def metrics(path: Path) -> list:
    return [r.metric for r in records(path) if r.WhichOneof("record_type") == "metric"]
