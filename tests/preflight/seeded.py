"""What the preflight finds in options that a test has spoilt."""

from tinybert_dist.config import parse
from tinybert_dist.pipeline.flow import config_class
from tinybert_dist.preflight.checks import check_stage
from tinybert_dist.preflight.findings import ORDER
from tinybert_dist.preflight.subject import Subject

MAX_SECONDS = 10


def to_argv(options):
    """--name value ... of a dict; a list: several values, True: a bare switch, None: left out."""
    argv = []
    for name, value in options.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            argv += [f"--{name}", *map(str, values)]
    return argv


def findings_of(stage, options, is_launched=False):
    config = parse(config_class(stage), to_argv(options))
    return check_stage(Subject(stage, config, is_launched=is_launched))


def complaints(findings):
    return [finding for finding in findings if finding.severity in ORDER[2:]]
