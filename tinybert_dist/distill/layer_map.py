"""Which teacher layer each student layer learns from (uniform, top, bottom, or explicit)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPair:
    """Student layer `student` learns from teacher layer `teacher`, both from 1; 0: the embedding output."""

    student: int
    teacher: int
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name in metrics: "embeddings" or "layer_<student>"."""
        return "embeddings" if self.student == 0 else f"layer_{self.student}"


@dataclass(frozen=True)
class LayerMap:
    """The pairs of Transformer layers; the embedding outputs are always a pair of the hidden loss."""

    layers: tuple[LayerPair, ...]

    @property
    def hidden(self) -> tuple[LayerPair, ...]:
        """Pairs of the hidden loss, embeddings first."""
        return (LayerPair(0, 0), *self.layers)

    def __str__(self) -> str:
        return ",".join(
            f"{p.student}:{p.teacher}" + (f":{p.weight:g}" if p.weight != 1 else "") for p in self.layers
        )


def build_layer_map(description: str, num_student_layers: int, num_teacher_layers: int) -> LayerMap:
    """Parses a layer map.

    Args:
        description: "uniform" (student m <- teacher round(m * N / M)), "top" (N - M + m), "bottom" (m), or
            explicit: one teacher layer for each student layer ("3,6,9,12"), or pairs
            "student:teacher[:weight]" ("1:3,4:12:0.5"); layers are counted from 1.
        num_student_layers: M.
        num_teacher_layers: N.
    Raises:
        ValueError: unreadable, no such layer, or a student deeper than its teacher under a named map.
    """
    m, n = num_student_layers, num_teacher_layers
    student_layers = range(1, m + 1)
    if description in {"uniform", "top", "bottom"}:
        if m > n:
            raise ValueError(
                f"layer map {description!r} needs a student no deeper than its teacher, got {m} > {n} "
                "layers; give explicit pairs (student:teacher)"
            )
        teacher_layer = {
            "uniform": lambda i: (2 * i * n + m) // (2 * m),  # round half up, exact when M divides N
            "top": lambda i: n - m + i,
            "bottom": lambda i: i,
        }[description]
        return LayerMap(tuple(LayerPair(i, teacher_layer(i)) for i in student_layers))
    parts = [part.strip() for part in description.split(",") if part.strip()]
    try:
        if all(":" in part for part in parts):
            fields = [part.split(":") for part in parts]
            pairs = [LayerPair(int(f[0]), int(f[1]), float(f[2]) if len(f) == 3 else 1.0) for f in fields]
        else:
            pairs = [LayerPair(i, int(part)) for i, part in enumerate(parts, start=1)]
            if len(pairs) != m:
                raise ValueError(f"{len(pairs)} teacher layers for {m} student layers")
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"cannot read layer map {description!r} ({error}); use uniform, top, bottom, {m} teacher layers "
            f"such as {','.join(str(i * n // m) for i in student_layers)}, or pairs student:teacher[:weight]"
        ) from error
    for pair in pairs:
        if not (1 <= pair.student <= m and 1 <= pair.teacher <= n and pair.weight > 0):
            raise ValueError(
                f"layer map {description!r}: pair {pair.student}:{pair.teacher}:{pair.weight:g} is outside "
                f"student layers 1..{m}, teacher layers 1..{n}, weights > 0; correct this pair"
            )
    if not pairs or len({pair.student for pair in pairs}) != len(pairs):
        raise ValueError(
            f"layer map {description!r} must name each student layer at most once and at least one"
        )
    return LayerMap(tuple(pairs))
