"""What is measured between two logged steps."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Window:
    """Sums since the last logged step."""

    term_weights: dict[str, float]
    steps: int = 0
    losses: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    grad_norm: float = 0.0
    tokens: float = 0.0
    computed_tokens: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    wait_s: float = 0.0
    started_at: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, float], grad_norm: float, counts: dict[str, float]) -> None:
        """One optimizer step over all processes: losses by term; counts: "tokens", "computed" (with padding),
        and as "data/..." what the feed has counted since the run began.
        """
        self.steps += 1
        self.grad_norm += grad_norm
        self.tokens += counts["tokens"]
        self.computed_tokens += counts["computed"]
        self.counts = {name: value for name, value in counts.items() if name.startswith("data/")}
        for term, value in losses.items():
            self.losses[f"loss/{term}"] += value
            if "/" in term:
                self.losses[f"loss/{term.split('/')[0]}"] += value
            self.losses["loss/total"] += value * self.term_weights[term]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which there is nothing to compute on."""
        since = time.perf_counter()
        yield
        self.wait_s += time.perf_counter() - since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training: start of the loader, evaluation, checkpoints."""
        since = time.perf_counter()
        yield
        self.started_at += time.perf_counter() - since

    def values(self) -> dict[str, float]:
        """Metrics, as means over the steps."""
        elapsed_s = time.perf_counter() - self.started_at
        return {name: total / self.steps for name, total in sorted(self.losses.items())} | {
            "grad_norm": self.grad_norm / self.steps,
            "throughput/tokens_per_s": self.tokens / elapsed_s,
            "throughput/steps_per_s": self.steps / elapsed_s,
            "throughput/padding_pct": 100 * (1 - self.tokens / self.computed_tokens),
            "throughput/data_wait_pct": 100 * self.wait_s / elapsed_s,
            **self.counts,
        }
