"""Sentences to sequences: filled pairs, or one line each. Pure: token ids in, token ids out."""

import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

MIN_SEQ_LENGTH = 5
SPLIT_SINGLE_PROBABILITY = 0.5

Row = tuple[list[int], int]


def pack_pairs(
    documents: Iterable[Iterable[Sequence[int]]],
    *,
    max_seq_length: int,
    cls_id: int,
    sep_id: int,
    seed: int | str,
    continuation_ids: Container[int] = frozenset(),
) -> Iterator[Row]:
    """Rows (input_ids, segment_b): `[CLS] A [SEP] B [SEP]` of neighbouring sentences.

    Whole sentences of one document are taken as long as they fit; A ends after a drawn number of them, as in
    BERT's own data. A sentence that fits no sequence is cut and continued in the next. No row crosses
    documents, and every token comes out exactly once. A row of one sentence is `[CLS] A [SEP]` in half of the
    cases (as single-sentence tasks will use it) and cut into A and B at a drawn word in the others, so that a
    corpus of one-sentence documents trains segment 1 too; segment_b == len(input_ids) says: no B.
    No cut is made before `continuation_ids` (the ## pieces) unless one word is longer than a row.

    Documents and their sentences may be lazy: at most one row of sentences is held.
    """
    assert max_seq_length >= MIN_SEQ_LENGTH, f"max_seq_length {max_seq_length} < {MIN_SEQ_LENGTH}"
    room = max_seq_length - 3
    draw = random.Random(seed)
    for document in documents:
        chunk: list[Sequence[int]] = []
        num_tokens = 0
        for piece in _fitting(document, room, continuation_ids):
            if num_tokens + len(piece) > room:
                yield _pair(chunk, cls_id, sep_id, draw, continuation_ids)
                chunk, num_tokens = [], 0
            chunk.append(piece)
            num_tokens += len(piece)
        if chunk:
            yield _pair(chunk, cls_id, sep_id, draw, continuation_ids)


def pack_lines(
    lines: Iterable[Sequence[int]],
    *,
    max_seq_length: int,
    cls_id: int,
    sep_id: int,
    on_cut: Callable[[int], object] = lambda num_tokens: None,
) -> Iterator[Row]:
    """One row `[CLS] line [SEP]` per line that has tokens; `on_cut(n)` hears of n tokens cut from a line."""
    assert max_seq_length >= MIN_SEQ_LENGTH, f"max_seq_length {max_seq_length} < {MIN_SEQ_LENGTH}"
    room = max_seq_length - 2
    for line in lines:
        if not line:
            continue
        if len(line) > room:
            on_cut(len(line) - room)
        input_ids = [cls_id, *line[:room], sep_id]
        yield input_ids, len(input_ids)


def _fitting(
    sentences: Iterable[Sequence[int]], room: int, continuation_ids: Container[int]
) -> Iterator[Sequence[int]]:
    for sentence in sentences:
        start = 0
        while len(sentence) - start > room:
            # the last word start that leaves at most `room` tokens, or inside a word that is longer than that
            cuts = range(start + room, start, -1)
            cut = next((cut for cut in cuts if sentence[cut] not in continuation_ids), start + room)
            yield sentence[start:cut]
            start = cut
        if start < len(sentence):
            yield sentence[start:] if start else sentence


def _pair(
    chunk: list[Sequence[int]],
    cls_id: int,
    sep_id: int,
    draw: random.Random,
    continuation_ids: Container[int],
) -> Row:
    if len(chunk) > 1:
        num_first = draw.randint(1, len(chunk) - 1)
    else:
        sentence = chunk[0]
        starts = [i for i in range(1, len(sentence)) if sentence[i] not in continuation_ids]
        if not starts or draw.random() >= SPLIT_SINGLE_PROBABILITY:
            return [cls_id, *sentence, sep_id], len(sentence) + 2
        cut = draw.choice(starts)
        chunk, num_first = [sentence[:cut], sentence[cut:]], 1
    input_ids = [cls_id]
    for sentence in chunk[:num_first]:
        input_ids += sentence
    input_ids.append(sep_id)
    segment_b = len(input_ids)
    for sentence in chunk[num_first:]:
        input_ids += sentence
    input_ids.append(sep_id)
    return input_ids, segment_b
