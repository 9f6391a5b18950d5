"""A corpus of raw text files as one token dataset: prepared once, restarted and rebuilt per file.

The folder holds one `part-<key>` per input file and a manifest.json that joins them. The key stands for the
text, the tokenizer and the recipe, so an unchanged file is never tokenised again, and processes that share
nothing but the folder can build parts side by side.
"""

import dataclasses
import multiprocessing
import re
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data import sources as raw
from tinybert_dist.data.corpus_part import Recipe, Source, build_part, is_finished, part_name
from tinybert_dist.data.packing import MIN_SEQ_LENGTH
from tinybert_dist.data.token_manifest import MANIFEST, write_joined_manifest
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.data.word_pieces import WordPieces
from tinybert_dist.files import fingerprint, sha256_of

MODES = ("pairs", "line")
OURS = re.compile(
    r"manifest\.json|\.manifest\.json\.\d+\.tmp|part-[0-9a-f]{16}|\.part-[0-9a-f]{16}\.\d+\.tmp"
)
MAX_UNKNOWN_PCT = 5.0
PLAIN_PROGRESS_EVERY_S = 10.0


def prepare(
    source: str | Path,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    recipe: Recipe | None = None,
    on_bad_record: str = "error",
    num_workers: int = 1,
    progress: bool = True,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Tokenises the files of `source` (file, folder or glob) into `output_dir`; TokenDataset.open reads it.

    Returns the summary: files, files_tokenized, text_tokens_tokenized of this run (0 if nothing changed), the
    counts of the whole corpus, bad_records, unknown_pct. With `dry_run` nothing is written.
    Raises UserError for bad options, bad records, or a folder that holds anything else; warns when more than
    5 % of the tokens are unknown to the vocabulary.
    """
    recipe, output_dir = recipe or Recipe(), Path(output_dir)
    if recipe.mode not in MODES:
        raise UserError(f"--mode {recipe.mode}: give one of {', '.join(MODES)}.")
    if recipe.max_seq_length < MIN_SEQ_LENGTH:
        raise UserError(
            f"--max_seq_length {recipe.max_seq_length}: at least {MIN_SEQ_LENGTH} tokens are needed."
        )
    old = _old_header(output_dir)
    sources = find_sources(source, output_dir, old.get("sources", []))
    pieces = WordPieces.of(tokenizer)
    parts = [part_name(item, recipe, pieces.fingerprint) for item in sources]
    missing = {
        part: item
        for part, item in zip(parts, sources, strict=True)
        if not is_finished(output_dir / part, on_bad_record)
    }
    summary: dict[str, Any] = {
        "output_dir": str(output_dir),
        "files": len(sources),
        "files_tokenized": len(missing),
    }
    if dry_run:
        return summary | {"bytes_to_read": sum(item.size_bytes for item in missing.values())}
    output_dir.mkdir(parents=True, exist_ok=True)
    started_at = time.perf_counter()
    _build(missing, output_dir, pieces, recipe, on_bad_record, num_workers, progress)
    seconds = time.perf_counter() - started_at
    header = _header(sources, parts, output_dir, recipe, pieces)
    if not header["counts"]["text_tokens"]:
        raise UserError(f"{source}: no text in {len(sources)} files. Give files with one sentence per line.")
    if missing or header != old:
        write_joined_manifest(output_dir, parts, header)
    _remove_others(output_dir, set(parts))
    dataset = TokenDataset.open(output_dir)
    built = [TokenDataset.open(output_dir / part).header for part in missing]
    tokenized = sum(part["counts"]["text_tokens"] for part in built)
    summary |= header["counts"] | {"rows": len(dataset), "tokens": dataset.num_tokens}
    summary |= {"text_tokens_tokenized": tokenized, "seconds": seconds, "fingerprint": dataset.fingerprint}
    summary |= {
        "tokens_per_s": tokenized / seconds if missing else 0.0,
        "cpu_s": sum(p["cpu_s"] for p in built),
    }
    summary["bad_records"] = header["bad_records"]
    summary |= {"bad_record_summary": "\n".join(header["bad_record_summaries"])}
    summary["unknown_pct"] = 100 * summary["unknown_tokens"] / summary["text_tokens"]
    if summary["unknown_pct"] > MAX_UNKNOWN_PCT:
        warnings.warn(
            f"{summary['unknown_pct']:.1f} % of the tokens of {source} are unknown to the vocabulary of "
            f"{tokenizer.name_or_path or 'the tokenizer'}: probably the tokenizer of another language.",
            stacklevel=2,
        )
    return summary


def find_sources(source: str | Path, output_dir: Path, known: Sequence[dict[str, Any]] = ()) -> list[Source]:
    """The input files with their sha256, which is read anew unless size and times are those of `known`."""
    root = Path(source) if Path(source).is_dir() else None
    files = [Path(item.path) for item in raw.find_sources(str(source))]
    files = [file for file in files if output_dir.resolve() not in file.resolve().parents]
    if not files:
        raise UserError(f"--train_file_path {source}: no text file besides what lies in {output_dir}.")
    before = {item["name"]: item for item in known}
    sources = []
    for file in files:
        stat = file.stat()
        seen = {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
        name = file.relative_to(root).as_posix() if root else file.name
        last = before.get(name, {})
        same = all(last.get(key) == value for key, value in seen.items())
        sources.append(Source(str(file), name, **seen, sha256=last["sha256"] if same else sha256_of(file)))
    return sources


def assign(sizes_bytes: Sequence[int], num_processes: int) -> list[list[int]]:
    """Which files each process builds: largest first to the least loaded. Pure: all processes agree."""
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [0] * num_processes
    for i in sorted(range(len(sizes_bytes)), key=lambda i: (-sizes_bytes[i], i)):
        process = loads.index(min(loads))
        shares[process].append(i)
        # an empty file costs something too
        loads[process] += sizes_bytes[i] + 1
    return shares


def _build(
    missing: dict[str, Source],
    output_dir: Path,
    pieces: WordPieces,
    recipe: Recipe,
    on_bad_record: str,
    num_workers: int,
    progress: bool,
) -> None:
    sizes = [item.size_bytes for item in missing.values()]
    bar = _Progress(sum(sizes), progress and bool(missing))
    jobs = [(item, output_dir / part, pieces, recipe, on_bad_record) for part, item in missing.items()]
    try:
        if num_workers <= 1 or len(jobs) <= 1:
            for job in jobs:
                build_part(*job, on_read=bar.update)
            return
        # spawn: a forked copy of a process with running threads (tokenizers, torch) may deadlock
        context = multiprocessing.get_context("spawn")
        shares = [[jobs[i] for i in share] for share in assign(sizes, min(num_workers, len(jobs)))]
        with ProcessPoolExecutor(len(shares), mp_context=context) as pool:
            # a share in one piece, so that a process keeps the words it has met
            futures = {pool.submit(_build_share, share): share for share in shares}
            for future in as_completed(futures):
                future.result()
                bar.update(sum(job[0].size_bytes for job in futures[future]))
    finally:
        bar.close()


def _build_share(jobs: list[tuple]) -> None:
    pieces = jobs[0][2] if jobs else None
    for source, folder, _, recipe, on_bad_record in jobs:
        assert pieces is not None
        build_part(source, folder, pieces, recipe, on_bad_record)


def _old_header(output_dir: Path) -> dict[str, Any]:
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file. Give a folder.")
    names = sorted(path.name for path in output_dir.glob("*"))
    foreign = [name for name in names if not OURS.fullmatch(name)]
    if foreign:
        some = ", ".join(foreign[:3])
        raise UserError(
            f"--output_dir {output_dir} holds {some}, which no prepared corpus has. Give its own folder."
        )
    if not (output_dir / MANIFEST).is_file():
        return {}
    try:
        header = TokenDataset.open(output_dir).header
    except UserError as error:
        print(f"note: {error} Its damaged parts are prepared again.", file=sys.stderr)
        return {}
    if header.get("kind") != "corpus":
        raise UserError(
            f"--output_dir {output_dir} holds another token dataset. Give the corpus its own folder."
        )
    return header


def _header(
    sources: Sequence[Source], parts: Sequence[str], output_dir: Path, recipe: Recipe, pieces: WordPieces
) -> dict[str, Any]:
    headers = [TokenDataset.open(output_dir / part).header for part in parts]
    counts: Counter[str] = Counter()
    for header in headers:
        counts.update(header["counts"])
    return {
        "kind": "corpus",
        **dataclasses.asdict(recipe),
        "tokenizer_fingerprint": pieces.fingerprint,
        "source_fingerprint": fingerprint([(item.name, item.sha256) for item in sources]),
        "counts": dict(counts),
        "bad_records": sum(header["bad_records"] for header in headers),
        "bad_record_summaries": [text for header in headers if (text := header["bad_record_summary"])],
        "sources": [
            {key: value for key, value in dataclasses.asdict(item).items() if key != "path"} | {"part": part}
            for item, part in zip(sources, parts, strict=True)
        ],
    }


def _remove_others(output_dir: Path, wanted: set[str]) -> None:
    for path in output_dir.iterdir():
        if path.is_dir() and path.name not in wanted and OURS.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


class _Progress:
    """Bytes read of the input: a bar in a terminal, now and then a line elsewhere."""

    def __init__(self, total_bytes: int, show: bool) -> None:
        self._total_bytes, self._done_bytes = total_bytes, 0
        self._started_at = self._printed_at = time.monotonic()
        self._plain = show and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total_bytes, unit="B", unit_scale=True, desc="tokenising", disable=not show or self._plain
        )

    def update(self, num_bytes: int) -> None:
        """Adds bytes read."""
        self._done_bytes += num_bytes
        self._bar.update(num_bytes)
        if self._plain and time.monotonic() - self._printed_at >= PLAIN_PROGRESS_EVERY_S:
            self._print()

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        elapsed_s = self._printed_at - self._started_at
        meter = tqdm.format_meter(
            self._done_bytes, self._total_bytes, elapsed_s, unit="B", unit_scale=True, ncols=0
        )
        print(f"tokenising {meter}", file=sys.stderr, flush=True)
