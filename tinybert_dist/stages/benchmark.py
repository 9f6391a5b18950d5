"""Measures speed, memory and where the time goes on this machine, before a big job; says what to set."""

from pathlib import Path
from typing import Any

from tinybert_dist.benchmark.options import BenchmarkOptions
from tinybert_dist.benchmark.run import Benchmark
from tinybert_dist.benchmark.table import to_text
from tinybert_dist.config import run_stage
from tinybert_dist.files import write_json
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.training.strategy import RunAccelerator, on_main, start_accelerator
from tinybert_dist.training.teacher_placement import require_sharding


def run(config: BenchmarkOptions) -> dict[str, Any]:
    """Measures what was asked for; returns the figures."""
    accelerator = start_accelerator(config.mixed_precision)
    require_sharding(accelerator, config.teacher_sharding)
    on_main(accelerator, preflight, "benchmark", config)

    def begins(what: str, found: dict[str, Any]) -> None:
        accelerator.print(f"benchmark: {what}", flush=True)
        _write(config, accelerator, found)  # of a job that is killed, or out of memory, the rest is kept

    benchmark = Benchmark(config, accelerator, begins)
    if config.dry_run:
        accelerator.print(f"benchmark: would measure {', '.join(config.stages)}")
        return {"outcome": "dry_run"}
    result = benchmark.run()
    if accelerator.is_main_process:
        print(to_text(result))
        for file in _files(config):
            print(f"benchmark: all figures in {file}")
    _write(config, accelerator, result)
    accelerator.wait_for_everyone()
    return result


def _write(config: BenchmarkOptions, accelerator: RunAccelerator, result: dict[str, Any]) -> None:
    if accelerator.is_main_process:
        for file in _files(config):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, result)


def _files(config: BenchmarkOptions) -> list[Path]:
    folder = [Path(config.output_dir) / "benchmark.json"] if config.output_dir else []
    return folder + ([Path(config.json)] if config.json else [])


def main(argv: list[str] | None = None) -> Any:
    """Command line of the stage."""
    return run_stage(run, BenchmarkOptions, argv)


if __name__ == "__main__":
    main()
