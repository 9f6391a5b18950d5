"""Raw text to token shards, once: the corpus of general distillation."""

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from tinybert_dist.config import HfArg, StageFailed, StageOptions, UserError, run_stage, to_dict
from tinybert_dist.data import corpus
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.corpus_pieces import Share
from tinybert_dist.data.options import CorpusOptions
from tinybert_dist.data.sources import Piece, Source, find_sources, read_sentences
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.word_pieces import WordPieces
from tinybert_dist.models import load_tokenizer
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.training.tracking import Tracker, TrackingOptions

UPDATES_IN_PLACE = True  # pieces that have not changed are not tokenised again
TRACKED = (
    "rows",
    "tokens",
    "sentences",
    "documents",
    "unknown_pct",
    "cut_tokens",
    "bad_records",
    "tokens_per_s",
)
SAMPLE_SENTENCES, MAX_SAMPLE_CHARS = 4000, 10_000


@dataclasses.dataclass(kw_only=True)
class PrepareCorpusConfig(CorpusOptions, TrackingOptions, StageOptions):
    """Options of prepare_corpus."""

    train_file_path: str = HfArg(
        help="text, JSON lines, CSV, TSV or Parquet (also .gz, .zst): file, folder, glob, URL (s3://, "
        "https:// ...), or hub:NAME[:CONFIG[:SPLIT]]"
    )
    teacher_model: str | None = HfArg(default=None, help="folder or hub name whose tokenizer is used")
    tokenizer: str | None = HfArg(default=None, help="tokenizer folder or hub name, instead of the teacher's")
    num_workers: int = HfArg(default=1, help="processes that share the pieces of the input")
    share: str | None = HfArg(
        default=None,
        help="K/N: this command builds the K-th of N shares, the same command with the other K elsewhere the "
        "rest, into one folder; default: what a launcher or srun says, else everything",
    )

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.teacher_model is None:
            raise UserError("no tokenizer: give --teacher_model (its tokenizer is taken) or --tokenizer.")


def run(config: PrepareCorpusConfig) -> dict[str, Any]:
    """Prepares `config.train_file_path` into `config.output_dir`; returns the summary of corpus.prepare."""
    preflight("prepare_corpus", config)
    path = str(config.tokenizer or config.teacher_model)
    share = _share(config.share)
    tokenizer = load_tokenizer(path, do_lower_case=config.do_lower_case)
    files = find_sources(config.train_file_path)
    size_mb = sum(file.size_bytes for file in files) / 1e6
    print(
        f"prepare_corpus: {len(files)} files, {size_mb:.1f} MB -> {config.output_dir}; rows of up to "
        f"{config.max_seq_length} tokens ({config.mode}); {type(tokenizer).__name__} of {path}, "
        f"{len(tokenizer)} pieces; {config.num_workers} processes"
        + (f"; share {share}" if share.count > 1 else ""),
        flush=True,
    )
    recipe = Recipe(config.mode, config.max_seq_length, config.seed, config.text_column)
    try:
        summary = corpus.prepare(
            config.train_file_path,
            config.output_dir,
            tokenizer,
            recipe=recipe,
            on_bad_record=config.on_bad_record,
            num_workers=config.num_workers,
            share=share,
            dry_run=config.dry_run,
        )
    except ConnectionError as error:
        raise StageFailed(f"{error}. The same command goes on from the last finished piece.") from error
    if config.dry_run:
        print(f"dry run: {summary['files_tokenized']} of {summary['files']} files would be tokenised")
        return summary
    if missing := summary.get("missing"):
        left = ", ".join(f"{count} of share {other}" for other, count in missing.items())
        print(
            f"share {share} is done; pieces still missing: {left}. Whoever ends last joins them.", flush=True
        )
        return summary
    if summary["text_tokens_tokenized"]:
        summary["bare_tokens_per_cpu_s"] = _bare_speed(files, WordPieces.of(tokenizer), config.text_column)
    print(summary_line(summary), flush=True)
    # of several processes the first that joins the pieces; a second run would be the same
    if summary["text_tokens_tokenized"] and (summary["is_first"] or share.count == 1):
        figures = {f"corpus/{name}": summary[name] for name in TRACKED}
        with Tracker(config, "prepare_corpus", config.output_dir, True, to_dict(config)) as tracker:
            tracker.summary(figures)
    return summary


def _share(given: str | None) -> Share:
    if given is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", given)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--share {given}: give K/N with K from 1 to N, such as 2/4.")
        return Share(int(match[1]) - 1, int(match[2]))
    # of Slurm's variables those of a step: an sbatch script by itself is one process, whatever --ntasks says
    for index, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if index in os.environ and count in os.environ:
            return Share(int(os.environ[index]), int(os.environ[count]))
    return Share()


def summary_line(summary: dict[str, Any]) -> str:
    """What was prepared, and how fast, for a person."""
    rows = max(1, summary["rows"])
    parts = [
        f"{summary['rows']:,} rows, {summary['tokens']:,} tokens ({summary['tokens'] / rows:.1f} per row)",
        f"{summary['sentences']:,} sentences in {summary['documents']:,} documents",
        f"{summary['unknown_pct']:.2f} % unknown",
    ]
    if summary["cut_tokens"]:
        parts.append(f"{summary['cut_tokens']:,} tokens cut from long lines")
    if summary["text_tokens_tokenized"]:
        speed = f"{summary['tokens_per_s']:,.0f} tokens/s"
        if bare := summary.get("bare_tokens_per_cpu_s"):
            per_cpu_s = summary["text_tokens_tokenized"] / summary["cpu_s"]
            speed += (
                f", {per_cpu_s:,.0f} per CPU-second ({100 * per_cpu_s / bare:.0f} % of the bare tokenizer)"
            )
        parts.append(speed)
    else:
        parts.append("unchanged, nothing tokenised")
    if summary["bad_record_summary"]:
        parts.append(summary["bad_record_summary"])
    return "prepared: " + "; ".join(parts)


def _bare_speed(files: Sequence[Source], pieces: WordPieces, text_column: str) -> float | None:
    # the first sentences, in memory, through the tokenizer and nothing else: the yardstick of this machine
    stream = read_sentences(Piece(files[0]), BadRecords("skip"), text_column)
    try:
        texts = [text[:MAX_SAMPLE_CHARS] for _, text in islice(stream, SAMPLE_SENTENCES) if text]
    except (UserError, ConnectionError):
        return None
    start_cpu_s = time.process_time()
    num_tokens = sum(map(len, pieces.encode_whole(texts)))
    return num_tokens / (time.process_time() - start_cpu_s) if num_tokens else None


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line entry."""
    return run_stage(run, PrepareCorpusConfig, argv)


if __name__ == "__main__":
    main()
