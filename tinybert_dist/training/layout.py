"""How samples are laid out for the models at hand: packed where every model can be, else padded."""

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.capture import can_pack, require_understood, uses_capture
from tinybert_dist.encoders import num_positions

PROBED_ROWS = 1024  # the shortest and the longest of so many, spread over the data, are computed both ways


def choose_collator(
    layout: str,
    models: list[PreTrainedModel],
    dataset: TokenDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    reference_averaging: bool = False,
) -> Collator:
    """Collator for `models`, probed on two real samples. Prints when padding is unavoidable.

    Raises UserError when max_length is over a position table, the tokenizer's vocabulary over an embedding
    table, a model of a family that is not understood, or the layout asked for is impossible.
    """
    pad_token_id, vocab_size = tokenizer.pad_token_id, len(tokenizer)
    for model in models:
        name = model.config._name_or_path or type(model).__name__
        require_rows(model.config, name, vocab_size, max_length)
        uses_capture(model)
    rows = np.unique(np.linspace(0, len(dataset) - 1, PROBED_ROWS, dtype=np.int64))
    by_length = rows[np.argsort(dataset.lengths_of(rows), kind="stable")]
    probe = dataset.fetch(np.unique(by_length[[0, -1]]))
    packed, padded = Collator("packed", pad_token_id), Collator("padded", pad_token_id)
    for model in models:
        try:
            require_understood(model, padded(probe))
        except ValueError as error:
            raise UserError(str(error)) from error
    if reference_averaging:
        if layout not in {"auto", "fixed"}:
            raise UserError(f"--reference_averaging counts padding and needs --layout fixed, got {layout}")
        layout = "fixed"
    if layout in {"auto", "packed"}:
        unpackable = [type(model).__name__ for model in models if not can_pack(model, packed, padded, probe)]
        if unpackable and layout == "packed":
            raise UserError(
                f"--layout packed: {', '.join(unpackable)} gives other results when packed; use padded"
            )
        if unpackable:
            PartialState().print(f"{', '.join(unpackable)} cannot be packed: length-sorted padding instead")
        layout = "padded" if unpackable else "packed"
    return Collator(layout, pad_token_id, max_length)  # type: ignore[arg-type]


def require_rows(config: PreTrainedConfig, name: str, vocab_size: int, max_length: int) -> None:
    """Raises UserError unless a model has an embedding for every piece, a position for every token."""
    if vocab_size > config.vocab_size:
        raise UserError(
            f"{name} has {config.vocab_size:,} embeddings, the tokenizer a "
            f"vocabulary of {vocab_size:,} entries; give the vocabulary this model was trained with"
        )
    if max_length > num_positions(config):
        raise UserError(
            f"--max_seq_length {max_length} is over the {num_positions(config)} positions of {name}; "
            "give at most that"
        )
