"""Where the layers of a BERT-like encoder are, and how it counts positions."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# families whose position ids start behind the padding id
POSITIONS_AFTER_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm"),
    *("data2vec-text", "mpnet", "xmod", "longformer", "luke", "ibert"),
}


def first_position(config: PreTrainedConfig) -> int:
    """Position id of a sequence's first token."""
    return config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0


def num_positions(config: PreTrainedConfig) -> int:
    """Longest sequence the position table holds."""
    return config.max_position_embeddings - first_position(config)


def layer_stacks(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where the encoder layers are: (parent, name) of every list of as many modules as there are layers."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == model.config.num_hidden_layers  # type: ignore[union-attr]
    ]


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """Every encoder layer, from the bottom."""
    return [layer for parent, name in layer_stacks(model) for layer in getattr(parent, name)]


def truncate_layers(model: PreTrainedModel, num_layers: int) -> None:
    """Drops the encoder layers above `num_layers`, in place: nothing learns from them."""
    stacks = layer_stacks(model)
    if num_layers < model.config.num_hidden_layers and len(stacks) == 1:
        parent, name = stacks[0]
        setattr(parent, name, getattr(parent, name)[:num_layers])
        for module in model.modules():
            if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
                config.num_hidden_layers = num_layers
