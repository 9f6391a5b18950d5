"""pipeline: runs the stages of a recipe in order, or as dependent Slurm jobs; skips what is unchanged.

name: quickstart
output_dir: runs/quickstart          # any other top-level key is a variable: ${output_dir}
slurm: {nodes: 1, time: "2:00:00"}   # sbatch's long options, for all steps; a step may have its own
stages:
  - name: teacher                    # unique; names the banner and the summary
    stage: finetune_teacher          # tinybert_dist.stages.<stage>
    args: {output_dir: "${output_dir}/teacher", num_train_epochs: 3}

python -m tinybert_dist.stages.pipeline recipe.yaml --set output_dir=/scratch/run --dry_run
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from tinybert_dist.config import UserError, redact
from tinybert_dist.pipeline.plan import make_plan, narrow
from tinybert_dist.pipeline.recipe import read_recipe
from tinybert_dist.pipeline.run import command_of, run
from tinybert_dist.pipeline.show import show_plan
from tinybert_dist.pipeline.slurm import live_jobs, sbatch_command, submit


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: exit code 2 for the user's mistakes, 1 when a stage failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tinybert_dist.stages.pipeline", description=__doc__.split("\n")[0]
    )
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a variable")
    parser.add_argument("--launcher", default="", help='e.g. "accelerate launch --config_file X.yaml"')
    parser.add_argument("--slurm", action="store_true", help="submit the steps as dependent jobs and return")
    parser.add_argument(
        "--only", action="append", default=[], metavar="STEP", help="this step alone (repeatable)"
    )
    parser.add_argument("--from", dest="start", metavar="STEP", help="this step and those below it")
    parser.add_argument("--dry_run", action="store_true", help="print the plan with its commands and stop")
    options = parser.parse_args(argv)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


def _run(options: argparse.Namespace) -> None:
    launcher = shlex.split(options.launcher)
    if options.slurm and launcher:
        raise UserError("--slurm and --launcher: the job script starts its own launcher. Leave one out.")
    recipe = read_recipe(options.recipe, options.set)
    plan = narrow(
        make_plan(recipe, live_jobs(required=options.slurm and not options.dry_run)),
        options.only,
        options.start,
    )
    if options.dry_run:
        show_plan(
            plan, lambda step: sbatch_command(plan, step) if options.slurm else command_of(step, launcher)
        )
        return
    show_plan(plan)
    if options.slurm:
        submit(plan)
    else:
        run(plan, launcher)


if __name__ == "__main__":
    main()
