"""Options of the distillation losses, the same in general distillation and both task steps."""

import logging
from dataclasses import dataclass, fields

from tinybert_dist.config import HfArg, UserError
from tinybert_dist.distill.layer_map import LayerMap, build_layer_map
from tinybert_dist.distill.modules import Distiller, DistillWeights

logger = logging.getLogger(__name__)
OF_LAYERS = {"layer_map", "attention_weight", "hidden_weight", "embedding_weight", "per_layer_projections"}
OF_PREDICTIONS = {"temperature"}


@dataclass(kw_only=True)
class DistillOptions:
    """What the student learns from the teacher; weight 0 switches a term off (the paper's ablations)."""

    layer_map: str = HfArg(
        default="uniform",
        help="uniform, top, bottom, teacher layers (3,6,9,12) or student:teacher[:weight], counted from 1",
    )
    attention_weight: float = HfArg(default=1.0, help="weight of the attention-score loss; 0 switches it off")
    hidden_weight: float = HfArg(
        default=1.0, help="weight of the hidden-state loss of the layers; 0 switches it off"
    )
    embedding_weight: float = HfArg(
        default=1.0, help="weight of the embedding-output loss; 0 switches it off"
    )
    temperature: float = HfArg(default=1.0, help="softmax temperature of the prediction loss")
    per_layer_projections: bool = HfArg(
        default=False, help="one projection per hidden pair instead of one for all"
    )
    num_relation_heads: int | None = HfArg(
        default=None, help="attention compared over this many split heads (default: the heads when equal)"
    )
    teacher_sharding: str = HfArg(
        default="none",
        metadata={"choices": ["none", "fsdp2", "zero3"]},
        help="teachers too large for one GPU: each process keeps a share (zero3: with DeepSpeed)",
    )
    reference_averaging: bool = HfArg(
        default=False,
        help="average like the original: padding and classes count (slower: rows of fixed length)",
    )

    def weights(self, prediction: bool) -> DistillWeights:
        """Weights of the intermediate losses, or of the prediction alone; UserError for impossible ones."""
        if self.temperature <= 0:
            raise UserError(f"--temperature {self.temperature}: must be greater than 0")
        if prediction:
            return DistillWeights(attention=0.0, hidden=0.0, embedding=0.0, prediction=1.0)
        weights = DistillWeights(self.attention_weight, self.hidden_weight, self.embedding_weight)
        if min(weights.attention, weights.hidden, weights.embedding) < 0:
            raise UserError("loss weights must not be negative")
        if not (weights.attention or weights.hidden or weights.embedding):
            raise UserError(
                "all losses are switched off; give --attention_weight, --hidden_weight or --embedding_weight"
            )
        return weights

    def build_map(self, student_config, teacher_config) -> LayerMap:
        """The layer map for these depths; UserError when it cannot be."""
        try:
            return build_layer_map(
                self.layer_map, student_config.num_hidden_layers, teacher_config.num_hidden_layers
            )
        except ValueError as error:
            raise UserError(f"--layer_map: {error}") from error

    def build_distiller(
        self, student, teacher_config, layer_map, *, prediction: bool, regression: bool
    ) -> Distiller:
        """Student and projections with the losses these options describe; warns of options without effect."""
        unused = OF_LAYERS if prediction else OF_PREDICTIONS
        for field in fields(DistillOptions):
            if field.name in unused and getattr(self, field.name) != field.default:
                what = "predictions" if prediction else "layers"
                logger.warning("--%s has no effect: this step learns %s", field.name, what)
        try:
            return Distiller(
                student,
                teacher_config,
                layer_map,
                self.weights(prediction),
                temperature=self.temperature,
                regression=regression,
                per_layer_projections=self.per_layer_projections,
                num_relation_heads=self.num_relation_heads,
                reference_averaging=self.reference_averaging,
            )
        except ValueError as error:
            raise UserError(f"--num_relation_heads: {error}") from error
