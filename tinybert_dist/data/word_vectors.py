"""GloVe word vectors: the nearest words by cosine, many words per matrix product."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from tinybert_dist.config import UserError
from tinybert_dist.data.text import BadRecords, open_binary

MAX_ROWS = 100_000  # neighbours come from the most frequent words only
BLOCK_WORDS = 256
# float32 shortlists, float64 orders: so many more than asked for, and by how much the last of them must be
# behind (float32 is off by less than a tenth of it for unit vectors)
SPARE = 16
CLEARLY_BEHIND = 1e-5
EQUAL_DIGITS = 12


class WordVectors:
    """Rows of unit length, and a cache of the neighbours asked for.

    V rows, D dimensions, B words, C shortlisted. Words keep the file's order; a word that comes twice keeps
    its first row. Neighbours stand in the order of their float64 cosines, equal ones in the file's order,
    whatever words share a matrix product and wherever it runs.
    """

    def __init__(self, words: list[str], vectors_VD: np.ndarray, device: str | torch.device = "cpu") -> None:
        self.words = words
        self.row_of = {word: row for row, word in reversed(list(enumerate(words)))}
        vectors_VD = vectors_VD.astype(np.float64)
        norms_V1 = np.linalg.norm(vectors_VD, axis=1, keepdims=True)
        vectors_VD /= np.where(norms_V1 > 0, norms_V1, 1)
        self._unit_VD = vectors_VD
        self._single_VD = torch.from_numpy(vectors_VD.astype(np.float32)).to(device)
        # a zero vector or a repeated word is nobody's neighbour
        usable = (norms_V1[:, 0] > 0) & np.array([self.row_of[word] == row for row, word in enumerate(words)])
        self._unusable_V = torch.from_numpy(~usable).to(device)
        self._cache: dict[tuple[str, int], tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def read(
        cls, path: str | Path, bad: BadRecords, max_rows: int = MAX_ROWS, device: str | torch.device = "cpu"
    ) -> "WordVectors":
        """Reads the first `max_rows` rows of a GloVe text file (also .gz, .zst; word2vec header skipped).

        A row that is not a word and as many finite numbers as the first goes to `bad` with its line number.
        Raises UserError when no row is left.
        """
        words: list[str] = []
        rows: list[np.ndarray] = []
        with open_binary(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1 and _is_header(line):
                    continue
                if len(words) >= max_rows:
                    break
                word, vector = _parse(line, rows[0].size if rows else None)
                if vector is None:
                    expected = f"{rows[0].size} numbers" if rows else "numbers"
                    bad.report(
                        path,
                        number,
                        f"not a word followed by {expected}",
                        "Give a GloVe text file (word v1 ... vD).",
                    )
                    continue
                words.append(word)
                rows.append(vector)
        if not words:
            raise UserError(
                f"{path}: holds no word vector. Give a GloVe text file, one `word v1 ... vD` a line."
            )
        return cls(words, np.stack(rows), device)

    def neighbours(self, words: Iterable[str], count: int) -> dict[str, tuple[str, ...]]:
        """The `count` nearest words of each word, nearest first, itself excluded; () for an unknown word.

        A word that is not in the file as it stands is looked up in lower case, and when it was in title case
        its neighbours are too.
        """
        wanted = list(dict.fromkeys(words))
        forms = {word: self._known_form(word) for word in wanted}
        missing = list(
            dict.fromkeys(form for form in forms.values() if form and (form, count) not in self._cache)
        )
        for start in range(0, len(missing), BLOCK_WORDS):
            self._fill(missing[start : start + BLOCK_WORDS], count)
        found: dict[str, tuple[str, ...]] = {}
        for word, form in forms.items():
            nearest = self._cache[form, count] if form else ()
            found[word] = tuple(n.title() for n in nearest) if form != word and word.istitle() else nearest
        return found

    def _known_form(self, word: str) -> str | None:
        return next((form for form in (word, word.lower()) if form in self.row_of), None)

    @torch.inference_mode()
    def _fill(self, words: list[str], count: int) -> None:
        rows_B = torch.tensor([self.row_of[word] for word in words], device=self._single_VD.device)
        similarity_BV = self._single_VD[rows_B] @ self._single_VD.T
        similarity_BV.masked_fill_(self._unusable_V, -torch.inf)
        similarity_BV[torch.arange(len(words)), rows_B] = -torch.inf
        short = similarity_BV.topk(min(count + SPARE, len(self.words)), dim=1)
        short_BC, values_BC = short.indices.cpu().numpy(), short.values.cpu().numpy()
        for b, word in enumerate(words):
            near_C = short_BC[b][values_BC[b] > -2]  # -inf where fewer usable words are left
            if len(near_C) > count and values_BC[b, count - 1] - values_BC[b, -1] < CLEARLY_BEHIND:
                # more nearly equal ones than were shortlisted
                near_C = np.flatnonzero((similarity_BV[b] > -2).cpu().numpy())
            cosines_C = (self._unit_VD[near_C] @ self._unit_VD[self.row_of[word]]).round(EQUAL_DIGITS)
            order_C = np.lexsort((near_C, -cosines_C))[:count]
            self._cache[word, count] = tuple(self.words[i] for i in near_C[order_C])


def _is_header(line: bytes) -> bool:
    fields = line.split()
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _parse(line: bytes, width: int | None) -> tuple[str, np.ndarray | None]:
    # a few words of the large GloVe files hold spaces, so the numbers are counted from the right
    fields = line.split()
    width = len(fields) - 1 if width is None else width
    if width < 1 or len(fields) <= width:
        return "", None
    numbers = b" ".join(fields[-width:])
    try:
        word = b" ".join(fields[:-width]).decode("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy's word for "not a number"
            vector = np.fromstring(numbers, dtype=np.float64, sep=" ")
    except (UnicodeDecodeError, DeprecationWarning, ValueError):
        return "", None
    return (word, vector) if vector.size == width and np.isfinite(vector).all() else ("", None)
