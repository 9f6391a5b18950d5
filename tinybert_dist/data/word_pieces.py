"""A fast tokenizer as text -> ids, with every distinct word tokenised once where that is provably safe."""

import json
import re
from collections.abc import Sequence
from itertools import chain, islice, pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.files import fingerprint

MAX_CACHED_WORDS = 100_000
MAX_CACHED_CHARS = 40
WORDS_IN_A_ROW = 1000
# marks of ASCII punctuation (and ideographs, if the normaliser separates them) are words of their own
PUNCTUATION, IDEOGRAPHS = r"!-/:-@\[-`{-~", "\u4e00-\u9fff"


class WordPieces:
    """Ids of texts without special tokens, without truncation; literal "[SEP]" in a text is text.

    BERT's normaliser and pre-tokeniser never look across a space, a mark of ASCII punctuation or an ideograph
    (when those are separated), so the ids of a text are those of its words, one after the other. For such
    tokenizers the ids of about MAX_CACHED_WORDS words are kept. Other tokenizers get whole texts. Picklable.
    """

    def __init__(
        self, backend_json: str, cls_id: int, sep_id: int, unk_id: int | None, vocab_size: int
    ) -> None:
        self._arguments = (backend_json, cls_id, sep_id, unk_id, vocab_size)
        self.cls_id, self.sep_id, self.unk_id, self.vocab_size = cls_id, sep_id, unk_id, vocab_size
        self._backend = Tokenizer.from_str(backend_json)
        self._backend.no_truncation()
        self._backend.no_padding()
        # what a text says must not become structure: "[SEP]" or "[MASK]" in it are ordinary characters
        self._backend.encode_special_tokens = True
        parts = json.loads(backend_json)
        self.fingerprint = fingerprint([_what_decides(parts), cls_id, sep_id, unk_id])
        self.by_word = _is_word_by_word(parts)
        alone = PUNCTUATION
        if self.by_word and parts["normalizer"]["handle_chinese_chars"]:
            alone += IDEOGRAPHS
        self._words = re.compile(f"[^ {alone}]+|[{alone}]").findall
        self.continuation_ids = _continuation_ids(parts)
        self._cache: dict[str, tuple[int, ...]] = {}
        self._vocab: dict[str, int] | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "WordPieces":
        """From a transformers tokenizer. Raises UserError if it is not a fast one, or lacks [CLS], [SEP]."""
        name = type(tokenizer).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{name} has no fast (tokenizers) version. Convert it, or choose another tokenizer."
            )
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise UserError(
                f"{name} of {tokenizer.name_or_path} has no [CLS] or no [SEP]: no BERT-like encoder."
            )
        ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id)
        return cls(backend.to_str(), *ids, len(tokenizer))

    def __reduce__(self) -> tuple:
        return WordPieces, self._arguments

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; the same as encode_whole, faster."""
        if not self.by_word:
            return self.encode_whole(texts)
        split = [self._words(text) for text in texts]
        missing = set(chain.from_iterable(split)).difference(self._cache)
        if missing:
            self._learn(missing)
        encoded = [list(chain.from_iterable(map(self._cache.__getitem__, words))) for words in split]
        for word in missing:
            if len(word) > MAX_CACHED_CHARS:
                del self._cache[word]
        if len(self._cache) > MAX_CACHED_WORDS:
            # what was met first is what is met often
            self._cache = dict(islice(self._cache.items(), MAX_CACHED_WORDS // 2))
        return encoded

    def _learn(self, missing: set[str]) -> None:
        # words in a row cost a third of a call for each: those of ASCII letters and digits stay one word each
        # whatever stands beside them, and only their first piece is no continuation
        words = missing if self.continuation_ids else ()
        plain = [word for word in words if word.isascii() and word.isalnum()]
        rows = [" ".join(plain[i : i + WORDS_IN_A_ROW]) for i in range(0, len(plain), WORDS_IN_A_ROW)]
        ids = list(chain.from_iterable(self.encode_whole(rows)))
        starts = [i for i, id_ in enumerate(ids) if id_ not in self.continuation_ids]
        assert len(starts) == len(plain), f"{len(plain)} words became {len(starts)}"
        # tuples of numbers, unlike lists, are nothing for the garbage collector to look through
        self._cache.update(
            (word, tuple(ids[start:end]))
            for word, (start, end) in zip(plain, pairwise([*starts, len(ids)]), strict=True)
        )
        other = list(missing.difference(plain))
        self._cache.update(zip(other, map(tuple, self.encode_whole(other)), strict=True))

    def ids_of(self, pieces: Sequence[str]) -> list[int]:
        """Ids of ready-made pieces by the vocabulary; [UNK] for one it lacks (-1 where there is no [UNK])."""
        if self._vocab is None:
            self._vocab = self._backend.get_vocab(with_added_tokens=True)
        unknown = -1 if self.unk_id is None else self.unk_id
        return [self._vocab.get(piece, unknown) for piece in pieces]

    def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text by the tokenizer itself."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _what_decides(parts: dict[str, Any]) -> dict[str, Any]:
    return {key: parts.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}


def _is_word_by_word(parts: dict[str, Any]) -> bool:
    types = [(parts.get(key) or {}).get("type") for key in ("normalizer", "pre_tokenizer", "model")]
    # added tokens that are not special are searched in the whole text: they could reach across words
    special_only = all(token["special"] for token in parts.get("added_tokens") or [])
    return types == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and special_only


def _continuation_ids(parts: dict[str, Any]) -> frozenset[int]:
    prefix = parts["model"].get("continuing_subword_prefix")
    if not prefix:
        return frozenset()
    return frozenset(id_ for piece, id_ in parts["model"]["vocab"].items() if piece.startswith(prefix))
