import numpy as np
import pytest
import torch
from model_folders import UnknownConfig
from transformers import BertConfig, BertModel, RobertaModel

from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.training import layout
from tinybert_dist.training.layout import choose_collator


class Tokenizer:
    """What a collator asks of one."""

    pad_token_id = 0

    def __len__(self):
        return 50


@pytest.fixture
def models():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_position_embeddings": 40, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    # the positions of the second begin behind the padding id, which is not known of its family
    return {
        "packed": BertModel(BertConfig(**sizes)),
        "padded": RobertaModel(UnknownConfig(**sizes)),
    }


@pytest.mark.parametrize("expected", ["packed", "padded"])
@pytest.mark.parametrize("lengths", [[7] * 3000, [*range(1, 30)] * 100, [5]])
def test_a_model_is_probed_on_two_rows_found_among_a_few(models, expected, lengths, monkeypatch):
    """Two also where all are of one length: a single sequence is the same packed and padded."""
    rows = [np.arange(n) + 5 for n in lengths]
    dataset, probed, read = TokenDataset.from_rows(rows, lengths), [], []
    fetch, lengths_of = dataset.fetch, dataset.lengths_of
    monkeypatch.setattr(dataset, "fetch", lambda rows: probed.append(list(rows)) or fetch(rows))
    monkeypatch.setattr(dataset, "lengths_of", lambda rows: read.extend(rows) or lengths_of(rows))
    collate = choose_collator("auto", [models[expected]], dataset, Tokenizer(), max_length=32)
    assert len(probed) == 1 and len(set(probed[0])) == min(2, len(rows))
    assert sorted({lengths[row] for row in probed[0]}) == sorted({min(lengths), max(lengths)})
    assert len(read) <= layout.PROBED_ROWS
    if len(rows) > 1:
        assert collate.layout == expected
