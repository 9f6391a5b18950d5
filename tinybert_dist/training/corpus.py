"""The corpus a stage trains on: a prepared folder as it is, raw text prepared first."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data.corpus import prepare
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.token_manifest import MANIFEST
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.data.word_pieces import WordPieces
from tinybert_dist.training.strategy import RunAccelerator, on_main


def open_corpus(
    accelerator: RunAccelerator,
    path: str,
    prepared: Path,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    on_bad_record: str = "error",
    num_workers: int = 1,
) -> TokenDataset:
    """Opens `path` if it is a folder of token shards, else prepares its text into `prepared`. Collective.

    Raises UserError when shards are damaged, were made with another tokenizer or for longer sequences.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        summary = on_main(
            accelerator,
            lambda: prepare(
                path, prepared, tokenizer, recipe=recipe, on_bad_record=on_bad_record, num_workers=num_workers
            ),
        )
        if accelerator.is_main_process:
            new = (
                f"{summary['files_tokenized']} tokenised now"
                if summary["files_tokenized"]
                else "all prepared before"
            )
            print(
                f"corpus: {summary['files']} files, {summary['rows']:,} sequences, "
                f"{summary['tokens']:,} tokens ({new})"
            )
            if summary["bad_records"]:
                print(summary["bad_record_summary"])
        folder = prepared
    # the main process reads every byte once a start: a flipped bit would be learned from without a word. At
    # 1.8 GB/s Wikipedia and BookCorpus (6.6 GB) take 4 s
    dataset = on_main(accelerator, TokenDataset.open, folder, True)
    require_usable(dataset, folder, tokenizer, recipe)
    return dataset


def refuse_prepared(path: str) -> None:
    """Raises UserError for token shards where raw text is to be streamed."""
    if (Path(path) / MANIFEST).is_file():
        raise UserError(
            f"--streaming: {path} is prepared already (it holds {MANIFEST}); leave --streaming out."
        )


def require_usable(
    dataset: TokenDataset, folder: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> None:
    """Raises UserError for shards of another tokenizer, of longer sequences, or without any."""
    known, wanted = dataset.header.get("tokenizer_fingerprint"), WordPieces.of(tokenizer).fingerprint
    if known != wanted:
        raise UserError(
            f"{folder} was prepared with another tokenizer than the teacher's; run prepare_corpus with this "
            "--teacher_model"
        )
    if len(dataset) == 0:
        raise UserError(f"{folder} holds no sequences; prepare it from text with at least one sentence")
    if (longest := dataset.max_length) > recipe.max_seq_length:
        raise UserError(
            f"{folder} holds sequences of {longest} tokens; give --max_seq_length {longest} or prepare anew"
        )
