"""The parts of a corpus as one dataset, and the end of what no longer belongs to it."""

import dataclasses
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinybert_dist.data.corpus_build import Builder, Built
from tinybert_dist.data.corpus_part import is_abandoned
from tinybert_dist.data.corpus_pieces import record_of
from tinybert_dist.data.sources import Piece
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.token_manifest import MANIFEST, read_manifest, write_joined_manifest
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.files import fingerprint, is_first

JSON = r"(manifest|share-\d+-of-\d+)\.json"
TEMPORARY_PART = re.compile(r"\.part-[0-9a-f]{16}\.[0-9a-f]{8}\.\d+\.tmp")
TRACKING, JOINED = "wandb", ".joined-"
OURS = re.compile(
    rf"{JSON}|{TRACKING}|{re.escape(JOINED)}[0-9a-f]{{16}}|\.{JSON}\.\d+\.tmp|part-[0-9a-f]{{16}}|"
    rf"{TEMPORARY_PART.pattern}"
)
ABANDONED_AFTER_S = 86_400


def join(
    builder: Builder, pieces: Sequence[Piece], built: Sequence[Built], old: dict[str, Any]
) -> dict[str, Any]:
    """Writes the manifest, the same whoever does it; counts, bad records, rows and tokens of the corpus.

    A corpus without a token of text gets none. `old`: the header of the manifest so far.
    """
    folder = builder.folder
    records = [record_of(piece, *found[:2]) for piece, found in zip(pieces, built, strict=True)]
    header = _header(records, builder)
    bad = {key: header[key] for key in ("bad_records", "bad_record_summary")}
    if not header["counts"]["text_tokens"]:
        return header["counts"] | bad
    parts = [found.part for found in built]
    if any(found.is_new for found in built) or header != old:
        write_joined_manifest(folder, parts, header)
    dataset = TokenDataset.open(folder)
    size = {"rows": len(dataset), "tokens": dataset.num_tokens, "fingerprint": dataset.fingerprint}
    mark = folder / f"{JOINED}{dataset.fingerprint}"
    size["is_first"] = is_first(mark)
    _remove_others(folder, {mark.name, *parts}, {record["part"] for record in old.get("pieces", [])})
    return header["counts"] | bad | size


def _header(records: Sequence[dict[str, Any]], builder: Builder) -> dict[str, Any]:
    headers = [read_manifest(builder.folder / record["part"])["header"] for record in records]
    counts: Counter[str] = Counter()
    bad = BadRecords("skip")
    for header in headers:
        counts.update(header["counts"])
        bad.add(header["bad_kinds"], header["bad_first"])
    return {
        "kind": "corpus",
        **dataclasses.asdict(builder.recipe),
        "tokenizer_fingerprint": builder.words.fingerprint,
        "source_fingerprint": fingerprint([(item["name"], item["content"]) for item in records]),
        "counts": dict(counts),
        "bad_records": bad.total,
        "bad_record_summary": bad.summary(),
        "pieces": list(records),
    }


def _remove_others(folder: Path, wanted: set[str], before: set[str]) -> None:
    # another command may be at work on other text: what is neither of the last corpus nor surely abandoned
    # stays, for a day
    for path in folder.iterdir():
        if path.name in wanted | {MANIFEST, TRACKING} or not OURS.fullmatch(path.name):
            continue
        try:
            is_old = time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
        except FileNotFoundError:
            continue  # whoever wrote it has finished it
        is_left = TEMPORARY_PART.fullmatch(path.name) is not None and is_abandoned(path)
        if path.name in before or path.name.startswith(JOINED) or is_old or is_left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
