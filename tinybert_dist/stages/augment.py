"""Writes the augmented training file of a task: words replaced by what BERT or GloVe offers."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tinybert_dist.config import HfArg, StageOptions, UserError, run_stage, to_dict
from tinybert_dist.data.augment_blocks import Blocks, ParquetRows, TsvRows
from tinybert_dist.data.augment_files import Source, block_size, cut, glue_source, output_stem, path_source
from tinybert_dist.data.augmentation import CandidateFinder, Draws, augment_block, sum_up
from tinybert_dist.data.masked_words import MaskedWords
from tinybert_dist.data.segmenters import SEGMENTERS
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.word_vectors import WordVectors
from tinybert_dist.files import fingerprint, sha256_of, still_missing
from tinybert_dist.models import LoadReport, load_masked_lm, load_tokenizer, lowers, weights_fingerprint
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.training.tracking import Tracker, TrackingOptions

DRAWS_OF_TASK = {"CoLA": 30, "MRPC": 30, "RTE": 30, "SST-2": 20, "QNLI": 20, "MNLI": 10, "QQP": 10}
OTHER_DRAWS = 30
SHOWN_SAMPLES = 3
# CPU: matrix products are as fast as they get from 500 tokens on, and from 4000 on every activation is too
# large for the allocator to keep: its pages are fetched anew in every layer
BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}


@dataclasses.dataclass(kw_only=True)
class AugmentConfig(TrackingOptions, StageOptions):
    """Options of `augment`."""

    pretrained_bert_model: str = HfArg(help="masked language model: hub name or folder")
    output_dir: str | None = HfArg(
        default=None, help="folder of the augmented file; default: beside the input"
    )  # type: ignore[assignment]
    glove_embs: str | None = HfArg(
        default=None, help="GloVe text file for words of several pieces; without it such words stay"
    )
    glue_dir: str | None = HfArg(default=None, help="GLUE folder: the task's own, or the one above it")
    task_name: str | None = HfArg(default=None, help="GLUE task under --glue_dir")
    data_path: str | None = HfArg(
        default=None,
        help="file or folder of one's own: lines (text, text<TAB>label, text<TAB>text2<TAB>label) or a table",
    )
    unlabelled: bool = HfArg(
        default=False,
        help="--data_path holds texts without labels (two fields of a line are two texts); out come lines of "
        "texts, which task_distill takes as --unlabelled_file_path",
    )
    output_format: str = HfArg(
        default="tsv",
        help="tsv: one file as the input is laid out; parquet: a folder of shards",
        metadata={"choices": ["tsv", "parquet"]},
    )
    text_column: str | None = HfArg(default=None, help="text column of a table; default: the usual names")
    text_pair_column: str | None = HfArg(default=None, help="second text column of a table")
    label_column: str | None = HfArg(default=None, help="label column of a table")
    M: int = HfArg(default=15, help="candidates per word")
    N: int | None = HfArg(
        default=None,
        help="draws per text; default: SST-2, QNLI 20, MNLI, QQP 10, all others 30",
    )
    p: float = HfArg(default=0.4, help="probability of replacing a word")
    segmenter: str = HfArg(
        default="auto",
        help="what a word is; auto: Chinese words (jieba) in Chinese texts, English words in the others",
        metadata={"choices": list(SEGMENTERS)},
    )
    do_lower_case: bool | None = HfArg(
        default=None,
        help="lower-case the text; default: as the tokenizer",
        metadata={"nargs": "?", "const": True},
    )
    max_seq_length: int = HfArg(default=512, help="tokens of a query (the sentence twice), cut beyond")
    batch_tokens: int | None = HfArg(default=None, help="tokens of one forward; default CPU 1024, GPU 65536")
    max_examples: int | None = HfArg(default=None, help="augment the first so many examples, copy the others")
    dtype: str = HfArg(
        default="float32",
        help="precision of the encoder; bfloat16 is 2 to 4 times as fast where the machine has it, and moves "
        "the order of nearly equal candidates, differently for every --batch_tokens",
        metadata={"choices": ["float32", "bfloat16"]},
    )
    device: str | None = HfArg(default=None, help="cpu, cuda ...; default: cuda when there is one")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be made of a file: everything the draws depend on, and how it is cut into blocks."""

    source: Source
    num_examples: int
    draws: int
    output: Path
    block_size: int

    @property
    def num_blocks(self) -> int:
        """Blocks of the file; block b belongs to rank b mod world size."""
        return -(-self.num_examples // self.block_size)


def run(config: AugmentConfig) -> dict[str, Any]:
    """Augments this process's share of the blocks, or goes on where killed processes stopped.

    The process that finds all blocks done joins them, prints the report and returns the summary; the others
    return how many blocks are missing.
    """
    _check(config)
    preflight("augment", config)
    rank, world_size = (int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1)))
    bad = BadRecords(config.on_bad_record)
    plan = _plan(config, bad)
    if rank == 0:
        print(
            f"{plan.source.file}: {plan.num_examples} examples, N {plan.draws}, M {config.M}, p {config.p} "
            f"-> {plan.output}; {plan.num_blocks} blocks for {world_size} processes",
            flush=True,
        )
    finder, identity = (None, []) if config.dry_run else _finder(config, bad)
    if rank == 0 and bad.total:
        print(bad.summary(), flush=True)
    if finder is None:
        facts = {"examples": plan.num_examples, "N": plan.draws, "output": str(plan.output)}
        return facts | {"finished": False}

    identity += [sha256_of(plan.source.file), config.unlabelled, plan.draws, config.p, config.seed]
    identity += [plan.num_examples, config.max_examples]
    layout = plan.source.rows(BadRecords(config.on_bad_record))
    as_tsv = config.output_format == "tsv"
    row_format = TsvRows(layout.columns) if as_tsv else ParquetRows(layout.names())
    blocks = Blocks(plan.output, fingerprint(identity), plan.num_blocks, row_format)
    if (summary := blocks.finished()) is None:
        todo = blocks.missing(range(rank, plan.num_blocks, world_size), verify=True)
        _augment(config, plan, finder, blocks, todo, show=rank == 0)
        # another process may have joined them meanwhile
        left = len(still_missing(lambda: [] if blocks.finished() else blocks.missing(range(plan.num_blocks))))
        summary = blocks.finished()
    elif rank == 0:
        print(f"already finished: {plan.output}")
    if summary is not None:
        blocks.clear()
        return summary
    if left:
        print(
            f"process {rank}: its share is done; {left} of {plan.num_blocks} blocks are not there yet. The "
            "process that does the last one joins them; if it died, the same command goes on.",
            flush=True,
        )
        return {"output": str(plan.output), "blocks_missing": left, "finished": False}
    more = {"N": plan.draws, "bad_records": bad.total, "output": str(plan.output), "finished": True}
    summary, is_first = blocks.join(lambda facts: sum_up(facts) | more)
    _report(summary)
    if is_first:
        _track(config, plan, summary)
    return summary


def _plan(config: AugmentConfig, bad: BadRecords) -> Plan:
    source = _source(config)
    num_examples = source.count(bad)
    draws = config.N if config.N is not None else DRAWS_OF_TASK.get(source.spec.name, OTHER_DRAWS)
    suffix = source.output_suffix if config.output_format == "tsv" else ""
    output = Path(config.output_dir or source.file.parent) / f"{source.output_stem}{suffix}"
    return Plan(source, num_examples, draws, output, block_size(num_examples))


def outputs(config: AugmentConfig) -> list[str]:
    """Of a pipeline: the file or folder of the augmented rows, whose extension the data decide."""
    given = Path(config.data_path or Path(str(config.glue_dir), str(config.task_name)))
    if config.data_path is None and not given.is_dir():
        given = given.parent
    # of a folder the train file
    is_file = config.data_path is not None and bool(given.suffix) and not given.is_dir()
    folder, stem = (given.parent, output_stem(given)) if is_file else (given, "train_aug")
    return [str(Path(config.output_dir or folder) / f"{stem}*")]


def _augment(
    config: AugmentConfig, plan: Plan, finder: CandidateFinder, blocks: Blocks, todo: list[int], show: bool
) -> None:
    rows = plan.source.rows(BadRecords(config.on_bad_record), one_line=config.output_format == "tsv")
    limit = plan.num_examples if config.max_examples is None else config.max_examples
    draws = Draws(plan.draws, config.p, config.seed, limit)
    wanted = set(todo)
    total = sum(min(plan.block_size, plan.num_examples - b * plan.block_size) for b in todo)
    with tqdm(total=total, unit="example", desc="augment", mininterval=1.0, disable=not show) as bar:
        for b, block in enumerate(cut(rows.rows, plan.block_size)):
            if b in wanted:
                first = b * plan.block_size
                blocks.write(b, *augment_block(block, rows.text_columns, first, finder, draws))
                bar.update(len(block))


def _finder(config: AugmentConfig, bad: BadRecords) -> tuple[CandidateFinder, list[Any]]:
    """The finder of candidates, and what identifies the candidates it finds."""
    device = config.device or _default_device()
    tokenizer = load_tokenizer(config.pretrained_bert_model, config.do_lower_case)
    model = load_masked_lm(config.pretrained_bert_model)
    tied = ("decoder.weight", "decoder.bias")
    report: LoadReport = model.load_report  # type: ignore[assignment]
    if untrained := [key for key in report.missing if not key.endswith(tied)]:
        raise UserError(
            f"--pretrained_bert_model {config.pretrained_bert_model}: no trained masked-LM head there "
            f"(no {', '.join(untrained[:3])}). Give the pre-trained model, not one fine-tuned for a task."
        )
    weights = weights_fingerprint(model)
    segmenter = SEGMENTERS[config.segmenter](lowers(tokenizer))
    batch_tokens = config.batch_tokens or BATCH_TOKENS.get(torch.device(device).type, BATCH_TOKENS["cpu"])
    masked_words = MaskedWords(
        model,
        tokenizer,
        segmenter,
        top=config.M,
        max_seq_length=config.max_seq_length,
        batch_tokens=batch_tokens,
        device=device,
        dtype=getattr(torch, config.dtype),
    )
    vectors = WordVectors.read(config.glove_embs, bad, device=device) if config.glove_embs else None
    glove = sha256_of(config.glove_embs) if config.glove_embs else None
    words = fingerprint(tokenizer.backend_tokenizer.to_str())
    identity = [weights, words, glove, config.M, config.segmenter, config.max_seq_length, config.dtype]
    if not masked_words.is_exact:
        identity.append(batch_tokens)  # what shares a batch shows in the last bits, and they are not settled
    return CandidateFinder(segmenter, masked_words, vectors, config.M), identity


def _default_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def _source(config: AugmentConfig) -> Source:
    if config.data_path:
        columns = (config.text_column, config.text_pair_column, config.label_column)
        return path_source(config.data_path, *columns, config.unlabelled)
    return glue_source(str(config.glue_dir), str(config.task_name))


def _check(config: AugmentConfig) -> None:
    by_task = config.glue_dir is not None and config.task_name is not None
    if by_task == (config.data_path is not None) or (config.glue_dir is None) != (config.task_name is None):
        raise UserError(
            "Nothing, or two things, to augment: give --glue_dir and --task_name, or --data_path."
        )
    if config.unlabelled and config.data_path is None:
        raise UserError("--unlabelled: give the texts as --data_path; a GLUE task has labels.")
    if not 0 <= config.p <= 1:
        raise UserError(f"--p {config.p}: a probability, between 0 and 1 (the original's: 0.4).")
    least = {"M": 1, "N": 0, "seed": 0, "max_seq_length": 8, "batch_tokens": 1, "max_examples": 1}
    for name, minimum in least.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name} {value}: at least {minimum}.")


def _report(summary: dict[str, Any]) -> None:
    counts, seconds = summary["counts"], summary["seconds"]
    print(
        f"{counts['sentences']} distinct sentences, {counts['words']} words to replace: "
        f"{counts['by_model']} by the model, {counts['by_vectors']} by vectors, {counts['unchanged']} kept\n"
        f"queries: {counts['queries_unique']} computed of {counts['queries_asked']} asked, "
        f"{counts['queries_settled']} nearly equal ones settled in float64\n"
        f"{summary['new_rows']} new rows beside {summary['examples']} originals in {summary['output']}"
        f" ({summary['bad_records']} bad records passed over)\n"
        f"{counts['sentences'] / max(sum(seconds.values()), 1e-9):.1f} sentences/s "
        f"(candidates {seconds['candidates']:.1f} s, draws {seconds['draws']:.1f} s)"
    )
    for sample in summary["samples"][:SHOWN_SAMPLES]:
        print("  " + " | ".join(sample["augmented"]))


def _track(config: AugmentConfig, plan: Plan, summary: dict[str, Any]) -> None:
    numbers = {f"augment/{name}": summary[name] for name in ("examples", "new_rows", "bad_records")}
    numbers |= {f"augment/{name}": count for name, count in summary["counts"].items()}
    samples = summary["samples"][: config.wandb_samples]
    rows = [[" | ".join(sample["original"]), " | ".join(sample["augmented"])] for sample in samples]
    options = to_dict(config) | {"N": plan.draws}
    with Tracker(config, "augment", plan.output.parent, True, options, name=plan.output.name) as tracker:
        tracker.use_model("pretrained_bert_model", config.pretrained_bert_model)
        tracker.log(0, numbers)
        if rows:
            tracker.log_table("augmentations", ["original", "augmented"], rows)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Command line of this stage."""
    return run_stage(run, AugmentConfig, argv)


if __name__ == "__main__":
    main()
