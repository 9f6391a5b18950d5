"""Options of the text that sequences are made of, the same wherever it is prepared, streamed or measured."""

from dataclasses import dataclass

from tinybert_dist.config import HfArg


@dataclass(kw_only=True)
class CorpusOptions:
    """How raw text becomes sequences."""

    max_seq_length: int = HfArg(
        default=128, aliases=["--max_seq_len"], help="tokens per sequence, special ones included"
    )
    mode: str = HfArg(
        default="pairs",
        metadata={"choices": ["pairs", "line"]},
        help="pairs: sentences fill sequences as [CLS] A [SEP] B [SEP]; line: one line, one sequence",
    )
    text_column: str = HfArg(default="text", help="column of the text in JSON lines, CSV, TSV and Parquet")
    do_lower_case: bool | None = HfArg(
        default=None,
        metadata={"nargs": "?", "const": True},
        help="lower-case the text (default: what the tokenizer says; a vocab.txt alone does not say it)",
    )
