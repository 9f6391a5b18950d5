"""Floating point operations of a BERT-like encoder, in closed form: matrix products, a multiply-add as two.

Layer norms, activations, softmax and embedding look-ups are left out: under 2 % at any usual size.
"""

from transformers import PreTrainedConfig


def forward_flops_per_token(config: PreTrainedConfig, length: float, num_layers: int | None = None) -> float:
    """Of one token of a text of `length` tokens through the encoder (no head).

    num_layers: those that are computed, from the first; None: all. With texts of several lengths the exact
    `length` is their token-weighted mean, sum(S * S) / sum(S).
    """
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim  # DistilBERT's name for it
    projections = 2 * (4 * width * width + 2 * width * inner)  # query, key, value, output; up and down
    scores = 2 * 2 * length * width  # with every key, and the values weighted
    # ELECTRA and ALBERT project their embeddings, ALBERT even those that are as wide as its layers
    narrow = getattr(config, "embedding_size", None) or width
    widening = 0 if narrow == width and config.model_type != "albert" else 2 * narrow * width
    layers = config.num_hidden_layers if num_layers is None else num_layers
    layers *= getattr(config, "inner_group_num", 1)  # ALBERT may have several in one
    return widening + layers * (projections + scores)


def head_flops(config: PreTrainedConfig) -> float:
    """Of a classification head, once per text: the dense layer on the first token, and the labels."""
    return 2 * config.hidden_size * (config.hidden_size + config.num_labels)


def classifier_flops(config: PreTrainedConfig, length: int) -> float:
    """Of one text of `length` tokens through encoder and classification head."""
    return length * forward_flops_per_token(config, length) + head_flops(config)
