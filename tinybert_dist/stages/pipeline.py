"""pipeline: runs the stages of a YAML recipe in order; each resumes, or says that it is finished, by itself.

name: quickstart
output_dir: runs/quickstart          # any other top-level key is a variable: ${output_dir}
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
from tinybert_dist.pipeline.recipe import read_recipe
from tinybert_dist.pipeline.run import check_options, run


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: exit code 2 for the user's mistakes, 1 when a stage failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tinybert_dist.stages.pipeline", description=__doc__.split("\n")[0]
    )
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a variable")
    parser.add_argument("--launcher", default="", help='e.g. "accelerate launch --config_file X.yaml"')
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(argv)
    try:
        recipe = read_recipe(options.recipe, options.set)
        for step in recipe.steps:
            check_options(step)
        run(recipe, launcher=shlex.split(options.launcher), dry_run=options.dry_run)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
