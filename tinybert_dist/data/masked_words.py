"""What a masked language model would put in a word's place: one query per (sentence, word), many per forward.

Shapes: Q queries of a batch, S tokens, W masked tokens of a word, D width, V vocabulary, C dictionary words.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data.segmenters import ALL_CJK, Segmenter, Words

# 32 queries x 100,000 dictionary words of float32 are 13 MB
DICTIONARY_QUERIES = 32
CONTINUATION = "##"
# byte-pair and sentencepiece vocabularies mark the beginning of a word instead of its continuation
WORD_BEGINS = ("\u0120", "\u2581")


class Query(NamedTuple):
    """`[CLS] sentence with masks [SEP] unmasked sentence [SEP]`: `width` masks stand at `position`."""

    input_ids: list[int]
    second_at: int
    position: int
    width: int
    whole_word: bool


class MaskedWords:
    """The words a masked LM prefers at a place.

    A word of one piece: the `top` vocabulary entries at its place, then continuation pieces and special
    tokens dropped. A Chinese word of the segmenter: all its characters are masked at once, and every
    dictionary word of that length is scored by the sum of its characters' log-probabilities; the best `top`
    are exact (no beam) and real words.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        segmenter: Segmenter,
        *,
        top: int,
        max_seq_length: int = 512,
        batch_tokens: int = 4096,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`segmenter` has the dictionary of Chinese words, which is read when one is met; `dtype` is the
        encoder's (the head stays as it is: in bfloat16 neighbouring logits would tie).

        Raises UserError for a tokenizer without a mask token or with more tokens than the model.
        """
        self._tokenizer = tokenizer
        self._frame, self._frame_types = _frame(tokenizer)
        rows = model.config.vocab_size
        if len(tokenizer) > rows:
            raise UserError(
                f"{model.name_or_path}: the tokenizer knows {len(tokenizer)} tokens, the model {rows}. "
                "Give the model its own tokenizer files."
            )
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)
        _convert_encoder(self._model, dtype)
        self._segmenter, self._top, self._batch_tokens = segmenter, top, batch_tokens
        self._max_seq_length = min(max_seq_length, _num_positions(model))
        self._word_of_id = whole_words(tokenizer)
        self._pieces: dict[str, list[int]] = {}
        self._tables: dict[int, tuple[list[str], torch.Tensor]] = {}

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
        """Candidates of each query, best first. A batch holds queries of one length: nothing is padded."""
        answers: list[tuple[str, ...]] = [()] * len(queries)
        for batch in self._batches(queries):
            for i, words in zip(batch, self._answer_batch([queries[i] for i in batch]), strict=True):
                answers[i] = words
        return answers

    def _in_dictionary(self, word: str, width: int) -> bool:
        # every character a token, and words of this length to choose from
        return len(word) == width and ALL_CJK.fullmatch(word) is not None and bool(self._table(width)[0])

    def _batches(self, queries: Sequence[Query]) -> Iterator[list[int]]:
        def kind(i: int) -> tuple[int, int, bool]:
            return len(queries[i].input_ids), queries[i].width, queries[i].whole_word

        batch: list[int] = []
        for i in sorted(range(len(queries)), key=kind):
            full = (len(batch) + 1) * len(queries[i].input_ids) > self._batch_tokens
            if batch and (full or kind(i) != kind(batch[0])):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    @torch.inference_mode()
    def _answer_batch(self, batch: list[Query]) -> list[tuple[str, ...]]:
        input_ids_QS = torch.tensor([query.input_ids for query in batch], device=self._device)
        inputs = {"input_ids": input_ids_QS}
        if self._frame_types is not None:
            length = input_ids_QS.shape[1]
            second_at_Q1 = torch.tensor([[query.second_at] for query in batch], device=self._device)
            position_S = torch.arange(length, device=self._device)
            first, second = self._frame_types
            inputs["token_type_ids"] = torch.where(position_S < second_at_Q1, first, second)
        width = batch[0].width
        places_Q1 = torch.tensor([[query.position] for query in batch], device=self._device)
        places_QW = places_Q1 + torch.arange(width, device=self._device)
        logits_QWV = logits_at(self._model, inputs, places_QW)[..., : len(self._word_of_id)]
        if batch[0].whole_word:
            words, ids_CW = self._table(width)
            return [tuple(words[c] for c in row) for row in _best_words(logits_QWV, ids_CW, self._top)]
        top_QM = logits_QWV[:, 0].topk(min(self._top, logits_QWV.shape[-1]), dim=-1).indices.tolist()
        return [tuple(word for i in row if (word := self._word_of_id[i]) is not None) for row in top_QM]

    def _table(self, width: int) -> tuple[list[str], torch.Tensor]:
        # dictionary words of this length whose characters all stand in the vocabulary, as ids
        if width not in self._tables:
            words = self._segmenter.dictionary.get(width, [])
            vocabulary = self._tokenizer.get_vocab()
            known = [word for word in words if all(character in vocabulary for character in word)]
            ids = [[vocabulary[character] for character in word] for word in known]
            self._tables[width] = known, torch.tensor(ids, dtype=torch.long, device=self._device)
        return self._tables[width]


def logits_at(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], places_QW: torch.Tensor
) -> torch.Tensor:
    """Logits_QWV of a masked LM at `places_QW` only: its own head runs on the gathered hidden states.

    Works for every model whose head maps the base model's first output position by position (BERT, RoBERTa,
    ELECTRA, DistilBERT, ALBERT ...); at S = 50 the full head would do 50 times the work.
    """

    def gather(_module, _arguments, output):
        hidden_QSD = output[0]
        rows = torch.arange(places_QW.shape[0], device=places_QW.device)[:, None]
        output["last_hidden_state"] = hidden_QSD[rows, places_QW].to(head_dtype)
        return output

    head_dtype = model.get_output_embeddings().weight.dtype

    hook = model.base_model.register_forward_hook(gather)
    try:
        return model(**inputs, return_dict=True).logits
    finally:
        hook.remove()


def _convert_encoder(model: PreTrainedModel, dtype: torch.dtype) -> None:
    decoder = model.get_output_embeddings()
    # the decoder shares its weight with the input embeddings, which are converted
    weight = decoder.weight.detach().clone() if decoder.weight.dtype != dtype else None
    model.base_model.to(dtype)
    if weight is not None:
        decoder.weight = nn.Parameter(weight, requires_grad=False)


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


def _best_words(logits_QWV: torch.Tensor, ids_CW: torch.Tensor, top: int) -> list[list[int]]:
    # the softmax's denominator is the same for every word, so logits sum like log-probabilities
    best: list[list[int]] = []
    for logits_qWV in logits_QWV.split(DICTIONARY_QUERIES):
        score_qC = logits_qWV[:, 0, ids_CW[:, 0]]
        for w in range(1, ids_CW.shape[1]):
            score_qC = score_qC + logits_qWV[:, w, ids_CW[:, w]]
        best += score_qC.topk(min(top, len(ids_CW)), dim=-1).indices.tolist()
    return best


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


def _num_positions(model: PreTrainedModel) -> int:
    positions = getattr(model.config, "max_position_embeddings", 512)
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    # RoBERTa counts its positions from padding_idx + 1
    return positions if padding is None else positions - padding - 1
