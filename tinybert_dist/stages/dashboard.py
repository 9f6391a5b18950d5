"""dashboard: the wandb dashboard of a project: shown as an outline, saved as JSON, or published.

tinybert-dist dashboard                                    the sections and panels, as text
tinybert-dist dashboard --json dashboard.json              the specification, without a connection
tinybert-dist dashboard --entity TEAM --publish            a saved view of the project; needs an API key
"""

import argparse
import os
import sys
from collections.abc import Sequence

from tinybert_dist import dashboard
from tinybert_dist.config import UserError
from tinybert_dist.files import write_json
from tinybert_dist.training.wandb_run import project_name


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: exit code 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(
        prog="python -m tinybert_dist.stages.dashboard",
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
    )
    parser.add_argument("--project", help="wandb project (default: WANDB_PROJECT, else tinybert_dist)")
    parser.add_argument("--entity", help="user or team (default: WANDB_ENTITY)")
    parser.add_argument("--name", default="tinybert_dist", help="name of the view")
    parser.add_argument("--json", metavar="FILE", help="write the specification here")
    parser.add_argument("--publish", action="store_true", help="save it as a view of the project")
    options = parser.parse_args(argv)
    project = project_name(options.project)
    entity = options.entity or os.environ.get("WANDB_ENTITY") or ""
    try:
        if options.publish and not entity:
            raise UserError("--publish: give --entity, the user or team the project belongs to.")
        if not (options.json or options.publish):
            print(dashboard.outline())
            return
        view = dashboard.workspace(entity, project, options.name)
        if options.json:
            write_json(options.json, dashboard.spec(view))
            print(f"dashboard: specification in {options.json}")
        if options.publish:
            print(f"dashboard: published as {view.save().url}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
