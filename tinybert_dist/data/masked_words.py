"""What a masked language model would put in a word's place: one query per (sentence, word), many per forward.

Shapes: N queries of a kind, W masked tokens of a word, V vocabulary, C candidates (vocabulary entries or
dictionary words), M wanted.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data.masked_logits import MaskedLogits, Query
from tinybert_dist.data.segmenters import ALL_CJK, Segmenter, Words
from tinybert_dist.encoders import num_positions

# 32 queries x 100,000 dictionary words of float32 are 13 MB
DICTIONARY_QUERIES = 32
CONTINUATION = "##"
# byte-pair and sentencepiece vocabularies mark the beginning of a word instead of its continuation
WORD_BEGINS = ("\u0120", "\u2581")
# queries whose float32 error is measured against float64, and how many times the largest error of a score
# the distance of two neighbours must be for their order to count as certain (2 would do were it the largest
# of all queries)
MEASURED_QUERIES = 32
SAFETY = 8
# float64 scores that agree to so many digits are equal, and the lower id comes first
EQUAL_DIGITS = 10


class MaskedWords:
    """The words a masked LM prefers at a place.

    A word of one piece: the `top` vocabulary entries at its place, then continuation pieces and special
    tokens dropped. A Chinese word of the segmenter: all its characters are masked at once, and every
    dictionary word of that length is scored by the sum of its characters' log-probabilities; the best `top`
    are exact (no beam) and real words.

    The order of candidates is that of their scores in float64. In float32 the last bits of a score depend on
    what shares its batch, and in a percent of the queries that is enough to swap two neighbours; such
    queries, known by neighbours closer than the error measured, are asked again in float64. So the answer to
    a query depends on nothing but the query. `num_settled` counts those asked again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        segmenter: Segmenter,
        *,
        top: int,
        max_seq_length: int = 512,
        batch_tokens: int = 1024,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`segmenter` has the dictionary of Chinese words, which is read when one is met; `dtype` is the
        encoder's (the head stays as it is: in bfloat16 neighbouring logits would tie).

        Raises UserError for a tokenizer without a mask token or with more tokens than the model.
        """
        self._tokenizer = tokenizer
        self._frame, types = _frame(tokenizer)
        rows = model.config.vocab_size
        if len(tokenizer) > rows:
            raise UserError(
                f"{model.name_or_path}: the tokenizer knows {len(tokenizer)} tokens, the model {rows}. "
                "Give the model its own tokenizer files."
            )
        self._device = torch.device(device)
        self._logits = MaskedLogits(model, types, self._device, dtype)
        self.is_exact = dtype == torch.float32
        self.num_settled = 0
        self._margin, self._num_measured = 0.0, 0
        self._segmenter, self._top, self._batch_tokens = segmenter, top, batch_tokens
        self._max_seq_length = min(max_seq_length, num_positions(model.config))
        self._word_of_id = whole_words(tokenizer)
        self._pieces: dict[str, list[int]] = {}
        self._tables: dict[int, tuple[list[str], Tensor]] = {}

    def pieces(self, word: str) -> list[int]:
        """Token ids of one word; each distinct word is tokenised once."""
        ids = self._pieces.get(word)
        if ids is None:
            # the space makes byte-pair vocabularies give the form inside a sentence; word-pieces ignore it
            ids = self._pieces[word] = self._tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        return ids

    def queries(self, sentence: Words) -> dict[int, Query]:
        """Queries of the eligible words by position; a word this model cannot answer for is left out.

        When the query is longer than `max_seq_length` the unmasked copy is cut first, then the sentence.
        """
        starts: list[int] = []
        ids: list[int] = []
        for word in sentence.words:
            starts.append(len(ids))
            ids += self.pieces(word)
        head, middle, tail = self._frame
        room = self._max_seq_length - len(head) - len(middle) - len(tail)
        first = ids[:room]
        rest = [*middle, *ids[: room - len(first)], *tail]
        second_at = len(head) + len(first) + len(middle)
        found: dict[int, Query] = {}
        for i in sentence.eligible:
            word, start = sentence.words[i], starts[i]
            width = len(self.pieces(word))
            whole_word = sentence.of_dictionary and self._in_dictionary(word, width)
            if (width == 1 or whole_word) and start + width <= len(first):
                masks = [self._tokenizer.mask_token_id] * width
                masked = [*head, *first[:start], *masks, *first[start + width :], *rest]
                found[i] = Query(masked, second_at, len(head) + start, width, whole_word)
        return found

    def answer(self, queries: Sequence[Query]) -> list[tuple[str, ...]]:
        """Candidates of each query, best first."""
        if not self.is_exact:
            return self._rank_all(queries, 0.0)[0]
        if self._num_measured < MEASURED_QUERIES:
            self._margin = max(self._margin, self._measure_margin(queries))
        answers, unsure = self._rank_all(queries, self._margin)
        if unsure:
            with self._logits.in_double():
                settled, _ = self._rank_all([queries[i] for i in unsure], None)
            for i, words in zip(unsure, settled, strict=True):
                answers[i] = words
            self.num_settled += len(unsure)
        return answers

    def _in_dictionary(self, word: str, width: int) -> bool:
        # every character a token, and words of this length to choose from
        return len(word) == width and ALL_CJK.fullmatch(word) is not None and bool(self._table(width)[0])

    def _rank_all(
        self, queries: Sequence[Query], margin: float | None
    ) -> tuple[list[tuple[str, ...]], list[int]]:
        # the answers, and which of them are not certain
        answers: list[tuple[str, ...]] = [()] * len(queries)
        unsure: list[int] = []
        for members, names, scores_NC in self._scores(queries):
            order_NM, sure_N = _best(scores_NC, self._top, margin)
            for i, order, sure in zip(members, order_NM.tolist(), sure_N.tolist(), strict=True):
                answers[i] = tuple(word for c in order if (word := names[c]) is not None)
                if not sure:
                    unsure.append(i)
        return answers, unsure

    def _measure_margin(self, queries: Sequence[Query]) -> float:
        # SAFETY times the largest error of float32 among the best scores of some queries
        sample = queries[:: max(1, len(queries) // MEASURED_QUERIES)]
        self._num_measured += len(sample)
        single = [scores_NC for _, _, scores_NC in self._scores(sample)]
        with self._logits.in_double():
            double = [scores_NC for _, _, scores_NC in self._scores(sample)]
        errors = [torch.finfo(torch.float32).eps]
        for single_NC, double_NC in zip(single, double, strict=True):
            best_NM = double_NC.topk(min(self._top + 1, double_NC.shape[-1])).indices
            error_NM = (single_NC.gather(-1, best_NM) - double_NC.gather(-1, best_NM)).abs()
            errors.append((error_NM / _scale(double_NC)).max().item())
        return SAFETY * max(errors)

    def _scores(self, queries: Sequence[Query]) -> Iterator[tuple[list[int], Sequence[str | None], Tensor]]:
        # indices of queries of one kind, the names of their candidates, scores_NC
        for batch in self._batches(queries):
            start = 0
            for logits_NWV in self._logits.at_masks([queries[i] for i in batch]):
                members = batch[start : start + len(logits_NWV)]
                start += len(members)
                if not queries[members[0]].whole_word:
                    yield members, self._word_of_id, logits_NWV[:, 0, : len(self._word_of_id)]
                    continue
                words, ids_CW = self._table(logits_NWV.shape[1])
                for at in range(0, len(members), DICTIONARY_QUERIES):
                    part = slice(at, at + DICTIONARY_QUERIES)
                    yield members[part], words, _word_scores(logits_NWV[part], ids_CW)

    def _batches(self, queries: Sequence[Query]) -> Iterator[list[int]]:
        batch: list[int] = []
        num_tokens = 0
        for i in sorted(range(len(queries)), key=lambda i: queries[i].kind):
            length = len(queries[i].input_ids)
            other = not self._logits.packs and batch and queries[i].kind != queries[batch[0]].kind
            if batch and (other or num_tokens + length > self._batch_tokens):
                yield batch
                batch, num_tokens = [], 0
            batch.append(i)
            num_tokens += length
        if batch:
            yield batch

    def _table(self, width: int) -> tuple[list[str], Tensor]:
        # dictionary words of this length whose characters all stand in the vocabulary, as ids
        if width not in self._tables:
            words = self._segmenter.dictionary.get(width, [])
            vocabulary = self._tokenizer.get_vocab()
            known = [word for word in words if all(character in vocabulary for character in word)]
            ids = [[vocabulary[character] for character in word] for word in known]
            self._tables[width] = known, torch.tensor(ids, dtype=torch.long, device=self._device)
        return self._tables[width]


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """Per vocabulary id the word it stands for; None for special tokens and pieces that continue a word."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    by_pieces = any(token.startswith(CONTINUATION) for token in tokens if token)
    marks = () if by_pieces else tuple(m for m in WORD_BEGINS if any(t.startswith(m) for t in tokens if t))
    words: list[str | None] = []
    for i, token in enumerate(tokens):
        if token is None or i in special or token.startswith(CONTINUATION):
            words.append(None)
        elif marks:
            begins = token.startswith(marks)
            words.append(tokenizer.convert_tokens_to_string([token]).strip() or None if begins else None)
        else:
            words.append(token)
    return words


def _word_scores(logits_NWV: Tensor, ids_CW: Tensor) -> Tensor:
    # the softmax's denominator is the same for every word, so logits sum like log-probabilities
    scores_NC = logits_NWV[:, 0, ids_CW[:, 0]]
    for w in range(1, ids_CW.shape[1]):
        scores_NC = scores_NC + logits_NWV[:, w, ids_CW[:, w]]
    return scores_NC


def _scale(scores_NC: Tensor) -> Tensor:
    # errors grow with the numbers they come from
    return scores_NC.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _best(scores_NC: Tensor, top: int, margin: float | None) -> tuple[Tensor, Tensor]:
    """The `top` best of each row, and whether their order is certain: no neighbours within `margin` times
    the largest score. margin None: the scores are float64, and equal ones go by index."""
    if margin is None:
        rounded_NC = (scores_NC / _scale(scores_NC)).round(decimals=EQUAL_DIGITS)
        order_NM = rounded_NC.sort(dim=-1, descending=True, stable=True).indices[:, :top]
        return order_NM, torch.ones(len(scores_NC), dtype=torch.bool)
    best = scores_NC.topk(min(top + 1, scores_NC.shape[-1]), dim=-1)
    gaps_NM = best.values[:, :-1] - best.values[:, 1:]
    return best.indices[:, :top], (gaps_NM >= margin * _scale(scores_NC)).all(-1)


def _frame(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[tuple[list[int], list[int], list[int]], tuple[int, int] | None]:
    # what the tokenizer puts before, between and after two texts, and their segment numbers
    mask = tokenizer.mask_token_id
    if mask is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no mask token, so no masked word can be asked for. "
            "Give a masked language model such as BERT or RoBERTa."
        )
    encoded = tokenizer(tokenizer.mask_token, tokenizer.mask_token, return_token_type_ids=True)
    ids = encoded["input_ids"]
    first, second = (i for i, token in enumerate(ids) if token == mask)
    types = encoded["token_type_ids"] if "token_type_ids" in tokenizer.model_input_names else None
    frame = ids[:first], ids[first + 1 : second], ids[second + 1 :]
    return frame, (types[first], types[second]) if types else None
