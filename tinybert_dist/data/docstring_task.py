"""A leak-free task out of documentation: which package does a text come from?"""

from collections.abc import Sequence
from typing import NamedTuple

from tinybert_dist.data.docstrings import Document, normalise, share


class Text(NamedTuple):
    """One example: consecutive sentences of a docstring, the package they come from, and its module."""

    label: str
    module: str
    sentences: tuple[str, ...]


def build_task(
    documents: Sequence[Document],
    *,
    sentences_per_text: int = 3,
    min_words: int = 10,
    max_texts_per_class: int = 4000,
    dev_pct: float = 8.0,
    test_pct: float = 8.0,
) -> dict[str, list[Text]]:
    """Texts labelled with their package, as {"train", "dev", "test"}, each in a fixed shuffled order.

    A document goes to one split as a whole. A sentence (after `normalise`) is kept once, in its first
    document, and not at all if two packages have it. So no sentence of dev or test is seen in training.
    """
    splits: dict[str, list[Text]] = {"train": [], "dev": [], "test": []}
    share_of = {"train": 1 - (dev_pct + test_pct) / 100, "dev": dev_pct / 100, "test": test_pct / 100}
    packages = {document.package for document in documents}
    room = {
        (package, split): round(max_texts_per_class * share_of[split])
        for package in packages
        for split in splits
    }
    for document in sorted(
        deduplicate(documents), key=lambda document: share(document.package, document.module)
    ):
        draw = share("split", document.package, document.module)
        split = (
            "dev"
            if draw < share_of["dev"]
            else "test"
            if draw < share_of["dev"] + share_of["test"]
            else "train"
        )
        for block in document.blocks:
            for start in range(0, len(block), sentences_per_text):
                text = tuple(block[start : start + sentences_per_text])
                # "Defaults to None." could come from anywhere
                if room[document.package, split] > 0 and sum(len(part.split()) for part in text) >= min_words:
                    room[document.package, split] -= 1
                    splits[split].append(Text(document.package, document.module, text))
    for texts in splits.values():
        texts.sort(key=lambda text: share(text.label, *text.sentences))
    return splits


def deduplicate(documents: Sequence[Document]) -> list[Document]:
    """The documents without repeated sentences, and without those that two packages share."""
    owners: dict[str, set[str]] = {}
    for document in documents:
        for block in document.blocks:
            for sentence in block:
                owners.setdefault(normalise(sentence), set()).add(document.package)
    seen = {key for key, packages in owners.items() if len(packages) > 1}
    kept = []
    for document in documents:
        blocks = []
        for block in document.blocks:
            fresh = []
            for sentence in block:
                key = normalise(sentence)
                if key not in seen:
                    seen.add(key)
                    fresh.append(sentence)
            blocks += [fresh] if fresh else []
        kept += [Document(document.package, document.module, blocks)] if blocks else []
    return kept
