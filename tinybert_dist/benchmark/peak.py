"""How fast the device multiplies matrices of the sizes that the teacher's linear layers have."""

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from tinybert_dist.benchmark.clock import Clock
from tinybert_dist.benchmark.measure import MIN_REPEATS
from tinybert_dist.report.speed import quantile
from tinybert_dist.training.strategy import RunAccelerator, has_fast_bf16

PRODUCTS_AT_ONCE = {"cpu": 1, "cuda": 32}  # a GPU's queue must be full, as it is in training
SQUARE = {"cpu": 1024, "cuda": 8192}  # what no layer limits


class Shape(NamedTuple):
    """[rows, inner] times [inner, columns]."""

    name: str
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Of one product, a multiply-add as two."""
        return 2 * self.rows * self.inner * self.columns


def layer_shapes(config: PreTrainedConfig, num_tokens: int, square: int) -> list[Shape]:
    """The products of an encoder layer over `num_tokens`, and a square one."""
    width, inner = config.hidden_size, config.intermediate_size
    return [
        Shape("attention", num_tokens, width, width),
        Shape("up", num_tokens, width, inner),
        Shape("down", num_tokens, inner, width),
        Shape("square", square, square, square),
    ]


def matrix_rates(
    accelerator: RunAccelerator, config: PreTrainedConfig, num_tokens: int, measure_s: float
) -> dict[str, Any]:
    """FLOP/s by precision ("no": float32, and "bf16" where it is computed natively), all processes together
    at the same time: {"best", "shapes": [{best, median ...}]}; on CPUs also "per_cpu_s", FLOPs in a second of
    computing, however busy the machine is. Collective.
    """
    device = accelerator.device
    types = {"no": torch.float32}
    if has_fast_bf16(device.type == "cuda", cpu_too=True):
        types["bf16"] = torch.bfloat16
    shapes = layer_shapes(config, num_tokens, SQUARE[device.type])
    rates: dict[str, Any] = {}
    for precision, dtype in types.items():
        entries = [_rate(accelerator, shape, dtype, measure_s / len(shapes)) for shape in shapes]
        kinds = [kind for kind in ("best", "per_cpu_s") if kind in entries[0]]
        rates[precision] = {kind: max(entry[kind] for entry in entries) for kind in kinds} | {
            "shapes": entries
        }
    return rates


@torch.inference_mode()
def _rate(accelerator: RunAccelerator, shape: Shape, dtype: torch.dtype, measure_s: float) -> dict[str, Any]:
    device, at_once = accelerator.device, PRODUCTS_AT_ONCE[accelerator.device.type]
    left = torch.randn(shape.rows, shape.inner, device=device, dtype=dtype)
    # as a linear layer holds its weight
    right = torch.randn(shape.columns, shape.inner, device=device, dtype=dtype).T
    product = torch.empty(shape.rows, shape.columns, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(at_once):
            torch.mm(left, right, out=product)

    accelerator.wait_for_everyone()
    clock = Clock(device)
    for _ in range(2):  # the first one chooses a kernel
        clock.run(multiply)
    repeats = max(MIN_REPEATS, min(200, int(measure_s / max(clock.seconds()[-1], 1e-6))))
    clock = Clock(device)
    for _ in range(repeats):
        clock.run(multiply)
    seconds = clock.seconds()
    rates = [at_once * shape.flops / min(seconds), at_once * shape.flops / quantile(seconds, 0.5)]
    best, median = accelerator.reduce(torch.tensor(rates, dtype=torch.float64, device=device), "sum").tolist()
    entry = {**shape._asdict(), "best": best, "median": median, "tries": repeats}
    if device.type == "cpu":
        entry["per_cpu_s"] = at_once * shape.flops / quantile(clock.cpu_seconds(), 0.5)
    return entry
