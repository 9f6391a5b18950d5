import random

import pytest

from tinybert_dist.data.packing import pack_lines, pack_pairs

CLS, SEP, MASK = 101, 102, 103


def documents(seed=0, num_documents=40, longest=60):
    """Documents whose tokens are all different, so that a lost, repeated or moved one shows."""
    draw = random.Random(seed)
    token = 1000
    result = []
    for _ in range(num_documents):
        sentences = []
        for _ in range(draw.randint(1, 12)):
            length = draw.randint(1, longest)
            sentences.append(list(range(token, token + length)))
            token += length
        result.append(sentences)
    return result


def packed(docs, max_seq_length=32, seed=0, **options):
    return list(pack_pairs(docs, max_seq_length=max_seq_length, cls_id=CLS, sep_id=SEP, seed=seed, **options))


def text_of(rows):
    return [token for ids, _ in rows for token in ids if token not in (CLS, SEP)]


@pytest.mark.parametrize("max_seq_length", [5, 16, 32, 128])
def test_every_token_comes_out_once_and_in_order(max_seq_length):
    docs = documents()
    rows = packed(docs, max_seq_length)
    assert text_of(rows) == [token for document in docs for sentence in document for token in sentence]
    assert max(len(ids) for ids, _ in rows) <= max_seq_length


def test_rows_have_the_shape_of_bert_and_no_mask():
    rows = packed(documents())
    for ids, segment_b in rows:
        assert ids[0] == CLS and ids[-1] == SEP and MASK not in ids
        if segment_b == len(ids):
            assert ids.count(SEP) == 1
        else:
            assert ids.count(SEP) == 2 and ids[segment_b - 1] == SEP
            assert 2 < segment_b < len(ids) - 1, "A and B both hold tokens"


def test_no_row_crosses_documents():
    docs = documents()
    owner = {token: i for i, document in enumerate(docs) for sentence in document for token in sentence}
    for ids, _ in packed(docs, 128):
        assert len({owner[token] for token in ids if token in owner}) == 1


def test_short_sentences_stay_whole_and_segments_split_between_them():
    docs = documents(longest=10)
    starts = {sentence[0] for document in docs for sentence in document}
    rows = [row for row in packed(docs, 32) if row[1] < len(row[0])]
    whole = [(ids, b) for ids, b in rows if sum(token in starts for token in ids) > 1]
    assert len(whole) > 50
    assert all(ids[1] in starts and ids[b] in starts for ids, b in whole)


def test_sequences_are_filled():
    lengths = [len(ids) for ids, _ in packed([[list(range(10))] * 1000], 128)]
    assert set(lengths[:-1]) == {123}, "12 sentences of 10 tokens and 3 special ones; a 13th does not fit"


def test_segment_one_is_well_represented():
    rows = packed([[[1] * 10] for _ in range(2000)], 32)
    pairs = sum(b < len(ids) for ids, b in rows)
    assert 0.45 < pairs / len(rows) < 0.55, "one-sentence documents: half pairs, half single"
    rows = packed([[[1] * 10] * 50 for _ in range(50)], 64)
    share = sum(len(ids) - b for ids, b in rows) / sum(len(ids) for ids, _ in rows)
    assert 0.4 < share < 0.6


def test_a_one_token_sentence_is_a_single_segment():
    assert packed([[[7]]]) == [([CLS, 7, SEP], 3)]


def test_cuts_do_not_fall_inside_a_word():
    word = [5, 900, 900]
    docs = [[word * 30] for _ in range(50)]
    rows = packed(docs, 32, continuation_ids={900})
    assert text_of(rows) == [token for document in docs for token in document[0]]
    assert all(ids[1] == 5 and ids[b if b < len(ids) else 1] == 5 for ids, b in rows)
    assert text_of(packed([[[900] * 70]], 32, continuation_ids={900})) == [900] * 70, (
        "one word longer than a row"
    )


def test_the_draws_depend_on_the_seed_alone():
    docs = documents()
    assert packed(docs, seed="a") == packed(docs, seed="a")
    assert packed(docs, seed="a") != packed(docs, seed="b")


def test_empty_documents_and_sentences_give_nothing():
    assert packed([[], [[]], [[], []]]) == []


def test_documents_are_consumed_lazily():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield [1] * 10

    rows = pack_pairs([endless()], max_seq_length=32, cls_id=CLS, sep_id=SEP, seed=0)
    for _ in range(10):
        next(rows)
    assert taken <= 2 * 10 + 1


def test_lines_are_one_row_each_and_the_cut_is_counted():
    cut = []
    lines = [[1, 2, 3], [], list(range(40))]
    rows = list(pack_lines(lines, max_seq_length=16, cls_id=CLS, sep_id=SEP, on_cut=cut.append))
    assert rows == [([CLS, 1, 2, 3, SEP], 5), ([CLS, *range(14), SEP], 16)]
    assert cut == [26]
