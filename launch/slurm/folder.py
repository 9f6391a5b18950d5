"""folder.py STAGE --flags: prints the folder in which the stage keeps what it has finished."""

import sys
from importlib import import_module
from pathlib import Path

from tinybert_dist.config import UserError, parse
from tinybert_dist.pipeline.flow import config_class


def main(stage: str, *argv: str) -> None:
    """What --output_dir says, on the command line or in the file of --config; augment has a default."""
    config = parse(config_class(stage), argv)
    print(config.output_dir or Path(import_module(f"tinybert_dist.stages.{stage}").outputs(config)[0]).parent)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
