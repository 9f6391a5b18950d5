"""Augmentation read literally: one masked query at a time through the whole model, one word at a time through
the whole GloVe table, nothing kept. Slow, and the yardstick for what is fast."""

import random

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from tinybert_dist.data.segmenters import EnglishWords


def literal_model(model):
    """The weights of a BERT masked LM under explicit attention and the GELU written out, as it was then."""
    config = BertConfig(**model.config.to_dict())
    config._attn_implementation, config.hidden_act = "eager", "gelu_python"
    literal = BertForMaskedLM(config).to(next(model.parameters()).dtype).eval()
    literal.load_state_dict(model.state_dict())
    return literal


class LiteralAugmentation:
    """`model`: a BertForMaskedLM; `words`, `vectors`: a GloVe table; `top`: M candidates."""

    def __init__(self, model, tokenizer, words, vectors, top):
        self.model, self.tokenizer, self.words, self.top = model, tokenizer, words, top
        self.row_of = {word: row for row, word in enumerate(words)}
        self.unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def candidates(self, text):
        """{index of a replaceable word: its candidates}, in order."""
        words = EnglishWords().split(text)
        found = {}
        for index in words.eligible:
            pieces = ["[CLS]", *self.tokenizer.tokenize(words.join())]
            starts = [i for i, piece in enumerate(pieces) if i and not piece.startswith("##")]
            place, end = [*starts, len(pieces)][index : index + 2]
            if end - place == 1:
                options = self.ask_model(pieces, place)
            else:
                options = self.ask_vectors(words.words[index])
            found[index] = tuple(options) or (words.words[index],)
        return found

    def ask_model(self, pieces, place):
        masked = [*pieces[:place], "[MASK]", *pieces[place + 1 :], "[SEP]"]
        tokens = [*masked, *pieces[1:], "[SEP]"][:512]
        segments = [0] * len(masked) + [1] * (len(tokens) - len(masked))
        ids = torch.tensor([self.tokenizer.convert_tokens_to_ids(tokens)])
        logits = self.model(ids, token_type_ids=torch.tensor([segments])).logits
        best = torch.argsort(logits[0, place], descending=True)[: self.top].tolist()
        special = set(self.tokenizer.all_special_tokens)
        names = self.tokenizer.convert_ids_to_tokens(best)
        return [name for name in names if not name.startswith("##") and name not in special]

    def ask_vectors(self, word):
        if word not in self.row_of:
            return []
        cosines = np.dot(self.unit, self.unit[self.row_of[word]])
        cosines[self.row_of[word]] = -np.inf
        return [self.words[row] for row in np.argsort(-cosines)[: self.top]]

    def augment(self, text, times=20, probability=0.4):
        """The new sentences of `times` draws (for timing: its random numbers are its own)."""
        words, found = EnglishWords().split(text), self.candidates(text)
        sentences = [text]
        for _ in range(times):
            new = list(words.words)
            for index, options in found.items():
                candidate = random.choice(options)
                if random.random() < probability:
                    new[index] = candidate
            if " ".join(new) not in sentences:
                sentences.append(" ".join(new))
        return sentences[1:]
