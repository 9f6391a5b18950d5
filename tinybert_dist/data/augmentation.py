"""Augmented sentences: candidates for the words of a text, and seeded draws from them.

Candidates depend on the text alone, draws on (seed, example, column) alone: examples can be spread over
processes, reordered or resumed without a change in what comes out.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinybert_dist.data.masked_logits import Query
from tinybert_dist.data.masked_words import MaskedWords
from tinybert_dist.data.segmenters import Segmenter, Words
from tinybert_dist.data.word_vectors import WordVectors

# pair tasks repeat texts far apart (a premise of MNLI comes three times); about 1 KB a sentence
CACHED_SENTENCES = 100_000
SAMPLES_PER_BLOCK, NUM_SAMPLES = 8, 64
COUNTED = (
    *("sentences", "words", "by_model", "by_vectors", "unchanged"),
    *("queries_asked", "queries_unique", "queries_settled", "query_tokens"),
)


class Candidates(NamedTuple):
    """A text as words; for each replaceable one, by its index, what may stand there; its queries."""

    words: Words
    options: dict[int, tuple[str, ...]]
    num_queries: int


class CandidateFinder:
    """Candidates of many texts at once.

    Words of one piece and Chinese words ask the masked LM, the others the word vectors; a word that neither
    can answer for keeps itself. `counts`: sentences (distinct), words, by_model, by_vectors, unchanged;
    queries_asked (every text as it comes), queries_unique (computed), queries_settled (asked again in float64
    because two candidates were nearly equal), query_tokens.
    """

    def __init__(
        self, segmenter: Segmenter, masked_words: MaskedWords, vectors: WordVectors | None, top: int
    ) -> None:
        """`top`: M, the candidates of a word."""
        self._segmenter, self._masked_words, self._vectors, self._top = segmenter, masked_words, vectors, top
        self._known: OrderedDict[Words, Candidates] = OrderedDict()
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def find(self, texts: Sequence[str]) -> dict[str, Candidates]:
        """Candidates by text. Texts that differ only in case or spacing share their queries."""
        if not self._masked_words.is_exact:
            # what stands in a batch may show in the answers: it must not depend on earlier calls
            self._known.clear()
        words_of = {text: self._segmenter.split(text) for text in dict.fromkeys(texts)}
        sentences = list(dict.fromkeys(words_of.values()))
        found = {words: self._known[words] for words in sentences if words in self._known}
        found |= self._compute([words for words in sentences if words not in found])
        self._known |= found
        while len(self._known) > CACHED_SENTENCES:
            self._known.popitem(last=False)
        by_text = {text: found[words] for text, words in words_of.items()}
        self.counts["queries_asked"] += sum(by_text[text].num_queries for text in texts)
        return by_text

    def _compute(self, sentences: list[Words]) -> dict[Words, Candidates]:
        asked = [self._masked_words.queries(sentence) for sentence in sentences]
        queries: list[Query] = [query for of_sentence in asked for query in of_sentence.values()]
        settled_before = self._masked_words.num_settled
        answers = iter(self._masked_words.answer(queries))
        pairs = list(zip(sentences, asked, strict=True))
        others = [s.words[i] for s, of_sentence in pairs for i in s.eligible if i not in of_sentence]
        near = self._vectors.neighbours(others, self._top) if self._vectors else {}
        found: dict[Words, Candidates] = {}
        for sentence, of_sentence in pairs:
            options: dict[int, tuple[str, ...]] = {}
            for i in sentence.eligible:
                word = sentence.words[i]
                answer = next(answers) if i in of_sentence else near.get(word, ())
                options[i] = answer or (word,)
                source = "unchanged" if not answer else "by_model" if i in of_sentence else "by_vectors"
                self.counts[source] += 1
            found[sentence] = Candidates(sentence, options, len(of_sentence))
        self.counts["sentences"] += len(sentences)
        self.counts["words"] += sum(len(sentence.eligible) for sentence in sentences)
        self.counts["queries_unique"] += len(queries)
        self.counts["queries_settled"] += self._masked_words.num_settled - settled_before
        self.counts["query_tokens"] += sum(len(query.input_ids) for query in queries)
        return found


def draw(
    text: str, candidates: Candidates, times: int, probability: float, generator: np.random.Generator
) -> list[str]:
    """New sentences out of `times` draws, in the order drawn.

    Each draw takes one candidate per replaceable word, all equally likely, and puts it in with `probability`.
    A sentence already drawn, or the text itself (also as its words re-joined), is not new.
    """
    words, options, _ = candidates
    if not options:
        return []
    sizes_W = np.array([len(of_word) for of_word in options.values()])
    choices_NW = (generator.random((times, len(sizes_W))) * sizes_W).astype(np.int64)
    replaced_NW = generator.random((times, len(sizes_W))) < probability
    # insertion order is the order of the draws
    drawn = dict.fromkeys((text, words.join()))
    num_known = len(drawn)
    for choices_W, replaced_W in zip(choices_NW.tolist(), replaced_NW.tolist(), strict=True):
        new = list(words.words)
        for (i, of_word), choice, replaced in zip(options.items(), choices_W, replaced_W, strict=True):
            if replaced:
                new[i] = of_word[choice]
        drawn[words.join(new)] = None
    return list(drawn)[num_known:]


def augment_example(
    texts: Sequence[str],
    candidates: dict[str, Candidates],
    times: int,
    probability: float,
    seed: int,
    index: int,
) -> list[tuple[str, ...]]:
    """The example itself, then its variants: of the first column, then of the second, the other one original.

    Every column of every example has a generator of its own, keyed by (seed, index, column).
    """
    variants = [tuple(texts)]
    for column, text in enumerate(texts):
        generator = np.random.Generator(np.random.PCG64([seed, index, column]))
        for new in draw(text, candidates[text], times, probability, generator):
            variants.append((*texts[:column], new, *texts[column + 1 :]))
    return variants


class Draws(NamedTuple):
    """How new examples are drawn: `times` per text, words replaced with `probability`; the first `limit`
    examples of the file are augmented, the others copied."""

    times: int
    probability: float
    seed: int
    limit: int


def augment_block(
    rows: Sequence[Sequence[str]],
    text_columns: Sequence[int],
    first: int,
    finder: CandidateFinder,
    draws: Draws,
) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of a block, each followed by its new ones, and the facts of it (see sum_up).

    `first` is the number of the block's first example in the file.
    """
    counts_before, started_at = Counter(finder.counts), time.perf_counter()
    to_augment = rows[: max(0, draws.limit - first)]
    candidates = finder.find([row[c] for row in to_augment for c in text_columns])
    found_at = time.perf_counter()
    out: list[list[str]] = []
    samples: list[dict[str, list[str]]] = []
    for index, row in enumerate(rows, first):
        texts = [row[c] for c in text_columns]
        variants = [tuple(texts)]
        if index < draws.limit:
            variants = augment_example(texts, candidates, draws.times, draws.probability, draws.seed, index)
        for variant in variants:
            new = list(row)
            for column, text in zip(text_columns, variant, strict=True):
                new[column] = text
            out.append(new)
        if len(variants) > 1 and len(samples) < SAMPLES_PER_BLOCK:
            samples.append({"original": texts, "augmented": list(variants[1])})
    seconds = {"candidates": found_at - started_at, "draws": time.perf_counter() - found_at}
    counts = {name: finder.counts[name] - counts_before[name] for name in finder.counts}
    facts = {"examples": len(rows), "rows": len(out), "counts": counts, "seconds": seconds}
    return out, facts | {"samples": samples}


def sum_up(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of all blocks as those of the file: examples, rows, new_rows, counts, seconds, a few samples."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for block in facts:
        counts.update(block["counts"])
        seconds.update(block["seconds"])
    examples, rows = (sum(block[name] for block in facts) for name in ("examples", "rows"))
    return {
        "examples": examples,
        "rows": rows,
        "new_rows": rows - examples,
        "counts": dict(counts),
        "seconds": dict(seconds),
        "samples": [sample for block in facts for sample in block["samples"]][:NUM_SAMPLES],
    }
