"""Writes the augmented training file of a task: words replaced by what BERT or GloVe offers."""

import dataclasses
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tinybert_dist.config import HfArg, StageOptions, UserError, run_stage
from tinybert_dist.data.augment_files import BlockFile, Source, blocks, glue_source, path_source
from tinybert_dist.data.augmentation import CandidateFinder, augment_example
from tinybert_dist.data.masked_words import MaskedWords
from tinybert_dist.data.segmenters import SEGMENTERS
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.word_vectors import WordVectors
from tinybert_dist.files import fingerprint, sha256_of
from tinybert_dist.models import LoadReport, load_masked_lm, load_tokenizer, lowers, weights_fingerprint

DRAWS_OF_TASK = {"CoLA": 30, "MRPC": 30, "RTE": 30, "SST-2": 20, "QNLI": 20, "MNLI": 10, "QQP": 10}
OTHER_DRAWS = 30
# enough sentences that queries of one length fill batches, few enough that a kill costs little
BLOCK_EXAMPLES = 1024
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
NUM_SAMPLES = 3


@dataclasses.dataclass(kw_only=True)
class AugmentConfig(StageOptions):
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
    batch_tokens: int | None = HfArg(default=None, help="tokens of one forward; default CPU 4096, GPU 65536")
    max_examples: int | None = HfArg(default=None, help="augment the first so many examples, copy the others")
    dtype: str = HfArg(
        default="float32",
        help="precision of the encoder; bfloat16 is 2 to 4 times as fast where the machine has it, and moves "
        "the order of nearly equal candidates",
        metadata={"choices": ["float32", "bfloat16"]},
    )
    device: str | None = HfArg(default=None, help="cpu, cuda ...; default: cuda when there is one")


def run(config: AugmentConfig) -> dict[str, Any]:
    """Augments, or goes on where a killed run stopped. Returns (and prints) the summary."""
    if int(os.environ.get("RANK", "0")) > 0:
        return {}  # one process augments: a second one would write into the same file
    _check(config)
    source = _source(config)
    bad = BadRecords(config.on_bad_record)
    num_examples = source.count(bad)
    draws = config.N if config.N is not None else DRAWS_OF_TASK.get(source.spec.name, OTHER_DRAWS)
    output = Path(config.output_dir or source.file.parent) / source.output_name
    print(f"{source.file}: {num_examples} examples, N {draws}, M {config.M}, p {config.p} -> {output}")
    if bad.total:
        print(bad.summary())
    if config.dry_run:
        return {"examples": num_examples, "N": draws, "output": str(output), "finished": False}

    finder, identity = _finder(config, bad)
    identity += [sha256_of(source.file), draws, config.p, config.seed, num_examples, config.max_examples]
    file = BlockFile(output, fingerprint(identity))
    if (summary := file.finished()) is not None:
        print(f"already finished: {output}")
        return summary
    summary = _write(config, source, draws, num_examples, finder, file)
    _report(summary)
    return summary


def _write(
    config: AugmentConfig,
    source: Source,
    draws: int,
    num_examples: int,
    finder: CandidateFinder,
    file: BlockFile,
) -> dict[str, Any]:
    progress = file.resume() or {"examples": 0, "rows": 0, "samples": [], "counts": {}, "seconds": {}}
    finder.counts.update(progress["counts"])
    seconds = {"candidates": 0.0, "draws": 0.0} | progress["seconds"]
    header, text_columns, _, rows = source.rows(BadRecords(config.on_bad_record))
    done: int = progress["examples"]
    limit = num_examples if config.max_examples is None else config.max_examples
    bar = tqdm(total=num_examples, initial=done, unit="example", desc="augment", mininterval=1.0)
    for block in blocks(islice(rows, done, num_examples), BLOCK_EXAMPLES):
        started_at = time.perf_counter()
        augmented = block[: max(0, limit - done)]
        candidates = finder.find([columns[c] for columns in augmented for c in text_columns])
        found_at = time.perf_counter()
        lines: list[str] = [] if done or header is None else [header]
        for index, columns in enumerate(block, done):
            texts = [columns[c] for c in text_columns]
            variants = [tuple(texts)]
            if index < limit:
                variants = augment_example(texts, candidates, draws, config.p, config.seed, index)
            progress["rows"] += len(variants)
            lines += ("\t".join(_with_texts(columns, text_columns, variant)) for variant in variants)
            if len(variants) > 1 and len(progress["samples"]) < NUM_SAMPLES:
                progress["samples"].append(list(variants[1]))
        done += len(block)
        seconds["candidates"] += found_at - started_at
        seconds["draws"] += time.perf_counter() - found_at
        progress |= {"examples": done, "seconds": seconds, "counts": dict(finder.counts)}
        file.append(lines, progress)
        bar.update(len(block))
    bar.close()
    summary = progress | {
        "new_rows": progress["rows"] - done,
        "N": draws,
        "output": str(file.path),
        "finished": True,
    }
    file.finish(summary)
    return summary


def _with_texts(columns: list[str], text_columns: tuple[int, ...], texts: tuple[str, ...]) -> list[str]:
    row = list(columns)
    for column, text in zip(text_columns, texts, strict=True):
        row[column] = text
    return row


def _finder(config: AugmentConfig, bad: BadRecords) -> tuple[CandidateFinder, list[Any]]:
    """The finder of candidates, and what identifies the candidates it finds."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
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
    masked_words = MaskedWords(
        model,
        tokenizer,
        segmenter,
        top=config.M,
        max_seq_length=config.max_seq_length,
        batch_tokens=config.batch_tokens or BATCH_TOKENS.get(torch.device(device).type, 4096),
        device=device,
        dtype=getattr(torch, config.dtype),
    )
    vectors = WordVectors.read(config.glove_embs, bad, device=device) if config.glove_embs else None
    glove = sha256_of(config.glove_embs) if config.glove_embs else None
    words = fingerprint(tokenizer.backend_tokenizer.to_str())
    identity = [weights, words, glove, config.M, config.segmenter, config.max_seq_length, config.dtype]
    return CandidateFinder(segmenter, masked_words, vectors, config.M), identity


def _source(config: AugmentConfig) -> Source:
    if config.data_path:
        return path_source(config.data_path, config.text_column, config.text_pair_column, config.label_column)
    return glue_source(str(config.glue_dir), str(config.task_name))


def _check(config: AugmentConfig) -> None:
    by_task = config.glue_dir is not None and config.task_name is not None
    if by_task == (config.data_path is not None) or (config.glue_dir is None) != (config.task_name is None):
        raise UserError(
            "Nothing, or two things, to augment: give --glue_dir and --task_name, or --data_path."
        )
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
        f"queries: {counts['queries_unique']} computed of {counts['queries_asked']} asked\n"
        f"{summary['new_rows']} new rows beside {summary['examples']} originals in {summary['output']}\n"
        f"{counts['sentences'] / max(sum(seconds.values()), 1e-9):.1f} sentences/s "
        f"(candidates {seconds['candidates']:.1f} s, draws {seconds['draws']:.1f} s)"
    )
    for sample in summary["samples"]:
        print("  " + " | ".join(sample))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Command line of this stage."""
    return run_stage(run, AugmentConfig, argv)


if __name__ == "__main__":
    main()
