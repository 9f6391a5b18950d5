"""What a person reads of a benchmark."""

from collections.abc import Iterator, Sequence
from typing import Any

from tinybert_dist.benchmark.phases import PHASES
from tinybert_dist.report.speed import describe_hardware
from tinybert_dist.training.progress import readable_count
from tinybert_dist.training.telling import lines

NAMES = {
    "teacher_forward": "teacher forward",
    "general": "general distillation",
    "step_1": "task step 1",
    "step_2": "task step 2, kept logits",
    "teacher": "teacher fine-tuning",
    "evaluate": "evaluation",
}
COUNTERS = {
    "teacher_forwards": "teacher forwards",
    "host_reads": "waits for the device",
    "collectives": "collectives",
    "collective_bytes": "their bytes",
    "recompilations": "recompilations",
    "saved_bytes": "bytes for backward",
}
PRECISIONS = {"no": "float32", "bf16": "bf16"}


def to_text(result: dict[str, Any]) -> str:
    """All of it."""
    parts = [_facts(result), _measured(result), _where(result), _counters(result), _sweep(result)]
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part)


def _facts(result: dict[str, Any]) -> Iterator[str]:
    processes = f"{result['processes']}, {result['strategy']}, {PRECISIONS[result['precision']]}"
    machine = {"machine": describe_hardware(result["hardware"]), "processes": processes}
    yield from lines(machine | result["subject"])
    for precision, rates in result["matrix_products"].items():
        best = max(rates["shapes"], key=lambda shape: shape["best"])
        sizes = " x ".join(str(best[side]) for side in ("rows", "inner", "columns"))
        yield (
            f"  matrix products, {PRECISIONS[precision]}: {readable_count(rates['best'])} FLOP/s of all "
            f"processes ({best['name']}: {sizes}; median {readable_count(best['median'])})"
        )
    if "loader" in result:
        yield f"  loader alone: {readable_count(result['loader']['tokens_per_s'])} real tokens/s"


def _measured(result: dict[str, Any]) -> Iterator[str]:
    heads = ["", "real tok/s", "with padding", "examples/s", "seconds", "of the floor", "MFU", "GiB"]
    rows = []
    for name, entry in result["measured"].items():
        if "error" in entry:
            rows.append([NAMES[name], entry["error"], *[""] * (len(heads) - 2)])
            continue
        rows.append([
            NAMES[name],
            readable_count(entry["tokens_per_s"]),
            readable_count(entry["padded_tokens_per_s"]),
            readable_count(entry["examples_per_s"]),
            f"{entry['seconds']:.3g}",
            f"{entry['share_of_floor']:.0%}",
            f"{entry['mfu']:.0%}" if "mfu" in entry else "",
            f"{entry['memory_bytes'] / 2**30:.2f}",
        ])  # fmt: skip
    table = [heads, *rows]
    if not any("mfu" in entry for entry in result["measured"].values()):  # the device's peak is not known
        table = [row[:6] + row[7:] for row in table]
    yield from _columns(table)


def _where(result: dict[str, Any]) -> Iterator[str]:
    if not result["where"]:
        return
    yield "where the time of a step goes, %"
    rows = [["", *PHASES.values()]]
    for name, seconds in result["where"].items():
        total = sum(seconds.values())
        rows.append([NAMES[name], *(f"{100 * s / total:.1f}" for s in seconds.values())])
    yield from _columns(rows)


def _counters(result: dict[str, Any]) -> Iterator[str]:
    counted = {name: entry["counters"] for name, entry in result["measured"].items() if "counters" in entry}
    if not counted:
        return
    yield "counted in a step, by the first process"
    rows = [["", *COUNTERS.values()]]
    for name, counters in counted.items():
        rows.append([NAMES[name], *(readable_count(counters[counter]) for counter in COUNTERS)])
    yield from _columns(rows)


def _sweep(result: dict[str, Any]) -> Iterator[str]:
    found = result.get("sweep")
    if not found:
        return
    yield f"micro-batch sizes, {NAMES[found['stage']]}"
    if "error" in found:
        yield f"  {found['error']}"
        return
    rows = [["--micro_batch_tokens", "micro-batches", "real tok/s", "GiB"]]
    for row in found["sizes"]:
        mark = " (default)" if row["micro_batch_tokens"] == found["default"] else ""
        rows.append([
            f"{row['micro_batch_tokens']}{mark}",
            f"{row['micro_batches']:.1f}",
            readable_count(row["tokens_per_s"]),
            f"{row['memory_bytes'] / 2**30:.2f}",
        ])  # fmt: skip
    yield from _columns(rows + [[str(size), "out of memory", "", ""] for size in found["too_large"]])
    if finer := found.get("accumulation"):
        yield (
            f"  the same step in {finer['finer_micro_batches']:.0f} micro-batches instead of "
            f"{finer['micro_batches']:.0f}: {finer['cost']:+.1%} time"
        )
    yield advice(found)


def advice(found: dict[str, Any]) -> str:
    """Which setting to use."""
    if not found["sizes"]:
        return "no size fits into memory: give a smaller --train_batch_size or --max_seq_length"
    if len(found["sizes"]) == 1 and not found["too_large"]:
        return (
            f"a step has about {found['step_tokens']:,.0f} tokens, which no other size cuts differently: "
            "see what a larger --train_batch_size does"
        )
    if found["speedup"] is None:
        return f"use --micro_batch_tokens {found['use']}: the default does not fit into memory"
    if found["use"] == found["default"]:
        return "the default --micro_batch_tokens is as fast as any"
    return f"use --micro_batch_tokens {found['use']}: {found['speedup']:.2f}x of the default"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(others, widths[1:], strict=True))]
        yield "  " + "  ".join(cells).rstrip()
