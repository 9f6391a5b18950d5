"""Tokenizers, with the lower-casing that old folders do not state."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.model_files import model_folder

UNSET_LENGTH = 1_000_000  # transformers writes 1e30 for "unknown"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(
    path: str | Path, do_lower_case: bool | None = None, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Fast tokenizer of a hub name or folder; a folder with only vocab.txt becomes a BERT tokenizer.

    `do_lower_case` None: what the folder states; if it states nothing, True unless the vocabulary holds
    words with ASCII capitals. `max_length` None: what the folder states, else the model's positions. Raises
    UserError if `do_lower_case` contradicts the folder, or no tokenizer can be built.
    """
    folder = model_folder(path)
    stated = _read_json(folder / "tokenizer_config.json")
    if not (folder / "tokenizer.json").is_file() and (folder / "vocab.txt").is_file():
        vocab = read_vocab(folder / "vocab.txt")
        lower = _choose(do_lower_case, stated.get("do_lower_case"), folder)
        lower = not is_cased(vocab) if lower is None else lower
        options = {key: stated[key] for key in ("strip_accents", "tokenize_chinese_chars") if key in stated}
        tokenizer: Any = BertTokenizer(vocab=vocab, do_lower_case=lower, **options)
        stated_length = stated.get("model_max_length")
    else:
        tokenizer = _load_auto(folder)
        _choose(do_lower_case, lowers(tokenizer), folder)
        stated_length = tokenizer.model_max_length
    tokenizer.model_max_length = max_length or _sane(stated_length) or _positions(folder) or 512
    return tokenizer


def lowers(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer really lower-cases: asked of its normaliser, because flags and behaviour may
    differ.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def read_vocab(file: str | Path) -> dict[str, int]:
    """vocab.txt as {piece: id}. Raises UserError for bad UTF-8, or a missing special token."""
    try:
        pieces = Path(file).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 at byte {error.start}. Restore the vocabulary of this model."
        ) from error
    if pieces and not pieces[-1]:
        pieces.pop()
    # the id is the line number, also for a repeated piece, of which the last counts (as in the original)
    vocab = {piece.rstrip("\r"): i for i, piece in enumerate(pieces)}
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        # transformers would append them behind the model's embedding table
        raise UserError(
            f"{file}: no {', '.join(missing)} in this vocabulary. Give the vocab.txt of a BERT model."
        )
    return vocab


def is_cased(vocab: dict[str, int]) -> bool:
    """Whether the words of a vocabulary keep their capitals. Markers such as [CLS] or <S> do not count."""
    words = [piece for piece in vocab if piece[:1] not in {"[", "<"}]
    with_capitals = sum(any("A" <= c <= "Z" for c in piece) for piece in words)
    with_small = sum(any("a" <= c <= "z" for c in piece) for piece in words)
    # a few stray capitals do not make a cased vocabulary: bert-base-cased has 1 in 3
    return with_capitals > 0.01 * with_small


def _load_auto(folder: Path) -> PreTrainedTokenizerFast:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # every backend raises its own types
        raise UserError(
            f"{folder}: no usable tokenizer ({type(error).__name__}: {str(error).splitlines()[0][:160]}). "
            "Give a folder with tokenizer.json or vocab.txt; code inside a model folder is never run."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: {type(tokenizer).__name__} has no fast version. Save it with a tokenizer.json."
        )
    return tokenizer


def _choose(asked: bool | None, stated: bool | None, folder: Path) -> bool | None:
    if asked is not None and stated is not None and asked != stated:
        raise UserError(
            f"{folder}: do_lower_case is {asked} on the command line, but this tokenizer "
            f"{'lower-cases' if stated else 'keeps capitals'}. Leave the option out, or correct "
            "tokenizer_config.json."
        )
    return stated if asked is None else asked


def _sane(length: Any) -> int | None:
    return int(length) if length and length < UNSET_LENGTH else None


def _positions(folder: Path) -> int | None:
    config = _read_json(folder / "config.json")
    positions = config.get("max_position_embeddings")
    # RoBERTa's positions start behind the padding id: 514 rows hold 512 tokens
    offset = (config.get("pad_token_id") or 1) + 1 if "roberta" in str(config.get("model_type")) else 0
    return positions - offset if positions else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). Restore or delete this file.") from error
    return content if isinstance(content, dict) else {}
