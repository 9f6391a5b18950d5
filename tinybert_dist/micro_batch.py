"""What one forward sees: sequences packed into one row of real tokens, or padded where they cannot be.

Attention runs over blocks: per group of sequences of like lengths, which stand side by side in the row.

Shapes: B sequences (of a group), S longest of them, T real tokens, H heads, K head width.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Token ids of B sequences and what a loss needs to count them, as Python numbers: no host sync."""

    input_ids: Tensor  # [1, T] packed, [B, S] padded
    token_type_ids: Tensor  # the same shape
    rows_B: Tensor  # dataset rows; stay on the host
    labels_B: Tensor  # class index or value, nan where unlabelled (float64)
    starts_B: Tensor  # index of each sequence's first token in the flattened ids
    num_tokens: int  # real tokens
    num_pairs: int  # real (query, key) pairs: sum of squared lengths
    max_length: int
    is_dummy: bool = False  # holds a rank's place in a collective, counts for nothing
    position_ids: Tensor | None = None  # [1, T], from 0 in every sequence; None when padded
    attention_mask: Tensor | None = None  # padded: [B, S] of 0/1; packed: None
    block_shapes: tuple[tuple[int, int], ...] = ()  # packed: (B, S) of each group
    block_index_T: Tensor | None = None  # packed: where token t stands in the groups' blocks, flattened
    block_masks: tuple[Tensor | None, ...] = ()  # packed: bool [B, 1, 1, S]; None where all are of one length
    token_labels: Tensor | None = None  # masked-LM targets in the shape of input_ids, -100 elsewhere
    num_token_labels: int = 0

    @property
    def is_packed(self) -> bool:
        """True when the linear layers see real tokens only."""
        return self.block_index_T is not None

    @property
    def num_sequences(self) -> int:
        """B."""
        return self.rows_B.numel()

    @property
    def num_computed_tokens(self) -> int:
        """Tokens the linear layers see, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same micro-batch on `device`; transfers from pinned memory overlap with compute."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, rows_B=self.rows_B)  # looked up there without waiting for the device

    def pin_memory(self) -> "MicroBatch":
        """Called by the DataLoader's pinning thread."""
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> "MicroBatch":
        def mapped(value):
            if isinstance(value, tuple):
                return tuple(map(mapped, value))
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, **{f.name: mapped(getattr(self, f.name)) for f in fields(self)})

    def to_blocks(self, x_1HTK: Tensor) -> list[Tensor]:
        """Packed row [1, H, T, K] -> blocks [B, H, S, K] of each group, zeros where a block has no token."""
        _, heads, num_tokens, width = x_1HTK.shape
        sizes = [num * length for num, length in self.block_shapes]
        x_THK = x_1HTK[0].transpose(0, 1)
        if num_tokens != sum(sizes):
            assert self.block_index_T is not None, "padded already"
            x_THK = x_THK.new_zeros(sum(sizes), heads, width).index_copy_(0, self.block_index_T, x_THK)
        return [
            part.view(*shape, heads, width).transpose(1, 2)
            for part, shape in zip(x_THK.split(sizes), self.block_shapes, strict=True)
        ]

    def to_row(self, blocks: list[Tensor]) -> Tensor:
        """Blocks [B, H, S, K] of each group -> packed row [1, T, H, K], as attention functions return it."""
        parts = [x_BHSK.transpose(1, 2).flatten(0, 1) for x_BHSK in blocks]
        x_NHK = torch.cat(parts) if len(parts) > 1 else parts[0]
        if x_NHK.shape[0] != self.num_tokens:
            assert self.block_index_T is not None, "padded already"
            x_NHK = x_NHK.index_select(0, self.block_index_T)
        return x_NHK.unsqueeze(0)
