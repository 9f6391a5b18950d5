"""AdamW as BERT uses it."""

import torch

from tinybert_dist.training.options import TrainingOptions


def build_optimizer(module: torch.nn.Module, options: TrainingOptions) -> torch.optim.AdamW:
    """AdamW over the trained parameters; no weight decay on biases and LayerNorm."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, eps=options.adam_epsilon, fused=True)
