"""How many times faster augmentation is than its literal reading: run with -m slow -s.

What it saves is a fifth of the multiplications; those left run at the machine's rate of matrix products. What
the latter brings depends on how far below that rate one query at a time is there.
"""

import time

import numpy as np
import pytest
import torch
from literal_augmentation import LiteralAugmentation, literal_model
from matrix_products import matrix_products_per_s
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from tinybert_dist.data.augmentation import CandidateFinder, augment_example
from tinybert_dist.data.masked_words import MaskedWords
from tinybert_dist.data.segmenters import EnglishWords
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.word_vectors import MAX_ROWS, WordVectors
from tinybert_dist.models import load_tokenizer

WIDTH, TOP, EVERY, ROUNDS = 300, 15, 8, 2


def glove_of_full_size(path):
    """Real words first, then made-up ones: a table of 100,000 x 300 like the one the original reads."""
    words = WordVectors.read(path, BadRecords()).words
    words += [f"madeup{i}" for i in range(MAX_ROWS - len(words))]
    return words, np.random.default_rng(0).normal(size=(MAX_ROWS, WIDTH))


@pytest.mark.slow
def test_sentences_per_cpu_second_against_the_literal_reading(shared_data):
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-uncased")
    lines = (shared_data / "glue" / "SST-2" / "train.tsv").read_text(encoding="utf-8").split("\n")
    texts = [line.split("\t")[0].strip() for line in lines[1:-1:350]]
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer))).eval()
    words, table = glove_of_full_size(shared_data / "glove" / "glove.6B.50d.real-12.5k.txt")
    literal = LiteralAugmentation(literal_model(model), tokenizer, words, table, TOP)
    segmenter = EnglishWords()
    masked_words = MaskedWords(model, tokenizer, segmenter, top=TOP)

    def num_tokens(text):
        return sum(len(q.input_ids) for q in masked_words.queries(segmenter.split(text)).values())

    # every 8th by the work it makes, so that the mean is that of all
    some = sorted(texts, key=num_tokens)[EVERY // 2 :: EVERY]
    ratios, rates = [], []
    queries = [q for text in texts for q in masked_words.queries(segmenter.split(text)).values()]
    # the first pass over so many shapes also takes fresh memory from the system: a seventh more time, once
    with FlopCounterMode(display=False) as counter:
        masked_words.answer(queries)
    for _ in range(ROUNDS):
        start_s = time.process_time()
        for text in some:
            literal.augment(text)
        literal_s = (time.process_time() - start_s) / len(some)
        finder = CandidateFinder(segmenter, masked_words, WordVectors(words, table), TOP)
        start_s = time.process_time()
        found = finder.find(texts)
        for index, text in enumerate(texts):
            augment_example([text], found, 20, 0.4, 0, index)
        batched_s = (time.process_time() - start_s) / len(texts)
        ratios.append(literal_s / batched_s)
        rates.append(counter.get_total_flops() / len(texts) / batched_s / matrix_products_per_s())
        print(
            f"\nCPU-s a sentence: literal {literal_s:.3f}, batched {batched_s:.3f}, {ratios[-1]:.2f} x, "
            f"at {rates[-1]:.0%} of the rate of matrix products"
        )
    assert max(ratios) > 2 and max(rates) > 0.85
    with torch.inference_mode():
        same = [found[text].options == literal.candidates(text) for text in some]
    # float32, one query at a time, has errors of its own among nearly equal candidates
    assert sum(same) >= len(same) - 2
