"""A corpus of raw text as one token dataset: prepared once, restarted and rebuilt per piece.

The folder holds one `part-<key>` per piece of the input and a manifest.json that joins them. The key stands
for the text, the tokenizer and the recipe, so what did not change is never tokenised again, and processes
that share nothing but the folder can build parts side by side. share-K-of-N.json: what one of N has built.
"""

import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data.corpus_build import Builder, Built, build_all
from tinybert_dist.data.corpus_join import OURS, join
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.corpus_pieces import (
    KnownContent,
    Share,
    assign,
    content_of,
    read_shares,
    record_of,
    write_share,
)
from tinybert_dist.data.packing import MIN_SEQ_LENGTH
from tinybert_dist.data.source_files import HUB
from tinybert_dist.data.sources import Piece, find_sources, split
from tinybert_dist.data.storage import is_url, shown
from tinybert_dist.data.token_manifest import MANIFEST, read_manifest
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.data.word_pieces import WordPieces
from tinybert_dist.files import still_missing

MODES = ("pairs", "line")
PIECE_BYTES = 64_000_000
MAX_UNKNOWN_PCT = 5.0


def prepare(
    source: str | Path,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    recipe: Recipe | None = None,
    on_bad_record: str = "error",
    num_workers: int = 1,
    share: Share | None = None,
    progress: bool = True,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Tokenises `source` (whatever find_sources takes) into `output_dir`; TokenDataset.open reads it.

    With `share` only some of the pieces are built, and whoever finds those of all shares joins them.
    Returns the summary: files, pieces, files_tokenized, text_tokens_tokenized of this run (0 if nothing
    changed); of a joined corpus the counts, bad_records, unknown_pct; else `missing`, how many pieces other
    shares still have to build. With `dry_run` nothing is read or written: files_tokenized is what may be.
    Raises UserError for bad options, bad records, or a folder that holds anything else; warns when more than
    5 % of the tokens are unknown to the vocabulary.
    """
    recipe, output_dir, share = recipe or Recipe(), Path(output_dir), share or Share()
    _require_possible(recipe)
    old = _old_header(output_dir)
    pieces = _find_pieces(source, output_dir)
    known = KnownContent([*old.get("pieces", []), *read_shares(output_dir)])
    builder = Builder(output_dir, WordPieces.of(tokenizer), recipe, on_bad_record)
    shares = assign([piece.size_bytes for piece in pieces], share.count)
    mine = sorted(shares[share.index])
    built = {i: found for i in mine if (found := builder.find(pieces[i], known.of(pieces[i])))}
    new = [i for i in mine if i not in built]
    summary: dict[str, Any] = {
        "output_dir": str(output_dir),
        "files": len({piece.source.name for piece in pieces}),
        "pieces": len(pieces),
        "files_tokenized": len({pieces[i].source.name for i in new}),
    }
    if dry_run:
        return summary | {"bytes_to_read": sum(pieces[i].size_bytes for i in new)}
    output_dir.mkdir(parents=True, exist_ok=True)
    started_at = time.perf_counter()
    jobs = [(pieces[i], known.of(pieces[i])) for i in new]
    built |= zip(new, build_all(builder, jobs, num_workers, progress), strict=True)
    tokenized = {i: built[i] for i in new if built[i].is_new}
    summary["files_tokenized"] = len({pieces[i].source.name for i in tokenized})
    summary["pieces_tokenized"] = len(tokenized)
    summary |= _speed(output_dir, tokenized.values(), time.perf_counter() - started_at)
    if share.count > 1:
        write_share(output_dir, share, [record_of(pieces[i], *built[i][:2]) for i in mine])

        def find_others() -> list[int]:
            built.update(_found_of_others(builder, pieces, set(range(len(pieces))).difference(built)))
            return [i for i in range(len(pieces)) if i not in built]

        if still_missing(find_others):
            missing = [
                (Share(k, share.count), sum(i not in built for i in own)) for k, own in enumerate(shares)
            ]
            return summary | {"missing": {str(other): count for other, count in missing if count}}
    summary |= join(builder, pieces, [built[i] for i in range(len(pieces))], old)
    if not summary["text_tokens"]:
        raise UserError(f"{shown(source)}: no text in {summary['files']} files. Give one sentence per line.")
    summary["unknown_pct"] = 100 * summary["unknown_tokens"] / summary["text_tokens"]
    if summary["unknown_pct"] > MAX_UNKNOWN_PCT:
        warnings.warn(
            f"{summary['unknown_pct']:.1f} % of the tokens of {shown(source)} are unknown to the vocabulary "
            f"of {tokenizer.name_or_path or 'the tokenizer'}: probably the tokenizer of another language.",
            stacklevel=2,
        )
    return summary


def _speed(output_dir: Path, tokenized: Iterable[Built], seconds: float) -> dict[str, Any]:
    headers = [read_manifest(output_dir / built.part)["header"] for built in tokenized]
    num_tokens = sum(header["counts"]["text_tokens"] for header in headers)
    speed = num_tokens / seconds if headers else 0.0
    cpu_s = sum(built.cpu_s for built in tokenized)
    return {"text_tokens_tokenized": num_tokens, "seconds": seconds, "tokens_per_s": speed, "cpu_s": cpu_s}


def _require_possible(recipe: Recipe) -> None:
    if recipe.mode not in MODES:
        raise UserError(f"--mode {recipe.mode}: give one of {', '.join(MODES)}.")
    if recipe.max_seq_length < MIN_SEQ_LENGTH:
        raise UserError(
            f"--max_seq_length {recipe.max_seq_length}: at least {MIN_SEQ_LENGTH} tokens are needed."
        )


def _find_pieces(source: str | Path, output_dir: Path) -> list[Piece]:
    own = output_dir.resolve()
    found = [
        item
        for item in find_sources(source)
        if item.path.startswith(HUB) or is_url(item.path) or own not in Path(item.path).resolve().parents
    ]
    if not found:
        raise UserError(f"--train_file_path {shown(source)}: no text file besides what lies in {output_dir}.")
    return [piece for item in found for piece in split(item, PIECE_BYTES)]


def _found_of_others(builder: Builder, pieces: Sequence[Piece], indices: Iterable[int]) -> dict[int, Built]:
    known = KnownContent(read_shares(builder.folder))
    found = {}
    for i in indices:
        piece = pieces[i]
        # another version may be another machine's copy of the same text
        content = known.of(piece) or (content_of(piece) if known.has(piece) else None)
        if part := builder.find(piece, content):
            found[i] = part
    return found


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
