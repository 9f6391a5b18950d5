"""The learning rate as a pure function of the optimizer step."""


def learning_rate_at(
    step: int, *, total_steps: int, peak: float, warmup_proportion: float, schedule: str
) -> float:
    """Learning rate of optimizer step `step` (0-based).

    Linear warm-up over warmup_proportion * total_steps steps, then "linear" decay towards 0 or "constant".
    """
    warmup_steps = int(warmup_proportion * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    return peak * max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
