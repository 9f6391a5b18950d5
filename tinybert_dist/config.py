"""Options: dataclasses filled from defaults < YAML < command line. An unknown key is an error."""

import dataclasses
import difflib
import errno
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType
from transformers.hf_argparser import HfArg as _HfArg

__all__ = [
    "HfArg",
    "PlainWords",
    "StageFailed",
    "StageOptions",
    "UserError",
    "parse",
    "redact",
    "run_stage",
    "to_dict",
    "to_yaml",
]

HfArg: Callable[..., Any] = _HfArg  # a field of any type, as dataclasses.field is declared
ConfigT = TypeVar("ConfigT", bound="StageOptions")
SECRET_IN_URL = re.compile(r"(?<=://)[^/\s]+@")  # up to the last @: passwords may hold one
SECRET_IN_QUERY = re.compile(
    r"([?&][^=&\s]*(?:token|key|secret|sig|password|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)


class UserError(ValueError):
    """The user's mistake: the message names the file or value, what is allowed, and what to do."""


class PlainWords(yaml.SafeLoader):
    """YAML whose words stay as written: YAML 1.1 reads the label `no` as false, the layer map 1:3 as 63."""


PlainWords.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class StageFailed(RuntimeError):
    """The stage cannot go on though its input was right; the message says why and what to do."""


@dataclasses.dataclass(kw_only=True)
class StageOptions:
    """What every stage takes."""

    output_dir: str = HfArg(
        help="folder this stage writes; the same command on it resumes or says it is finished"
    )
    seed: int = HfArg(default=42, help="seed of every draw: order, dropout, masks, initial weights")
    on_bad_record: Literal["error", "skip"] = HfArg(
        default="error", help="malformed input rows: stop with file and line, or count them and go on"
    )
    dry_run: bool = HfArg(default=False, help="print what would be done (sizes, steps, layer map) and stop")


def parse(config_class: type[ConfigT], argv: Sequence[str] | None = None) -> ConfigT:
    """Parses `argv` (default: sys.argv[1:]) into `config_class`.

    `--config FILE.yaml` holds the same keys, and the command line wins over it; `--print_config` prints the
    resolved options as YAML and exits 0. Raises UserError for an unknown key, with the nearest known one.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        DataClassType(config_class), allow_abbrev=False, prog=_program_name(config_class)
    )
    parser.add_argument("--config", help="YAML file with the same keys; the command line wins")
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved options as YAML and exit"
    )
    known = [option for action in parser._actions for option in action.option_strings]
    config_file = _config_file(argv)
    from_file = _yaml_to_argv(config_file, known) if config_file else []
    config, namespace, rest = parser.parse_args_into_dataclasses(
        args=from_file + argv, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        raise UserError(_unknown(rest[0], known, "on the command line"))
    if namespace.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def run_stage(
    run: Callable[[ConfigT], Any], config_class: type[ConfigT], argv: Sequence[str] | None = None
) -> Any:
    """A stage's main(): parse, run; a UserError becomes one readable message and exit code 2.

    So do a failed stage and a full disk, with exit code 1.
    """
    try:
        return run(parse(config_class, argv))
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    except StageFailed as error:
        print(f"failed: {redact(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error
    except Exception as error:
        if not _is_full_disk(error):
            raise
        print(f"failed: {error}. Make room, then the same command goes on.", file=sys.stderr, flush=True)
        raise SystemExit(1) from error


def read_yaml(
    path: str | Path, name: str, kind: str = "file", expected: str = "`key: value` lines"
) -> dict[str, Any]:
    """The mapping a YAML file holds, words as written; UserErrors call the file `name`."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), PlainWords)  # a SafeLoader
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}. Give the path of a YAML {kind}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: expected {expected}, got {type(content).__name__}.")
    return content


def to_dict(config: Any) -> dict[str, Any]:
    """Options as plain values, with credentials inside URLs removed."""
    return {key: redact(value) for key, value in dataclasses.asdict(config).items()}


def to_yaml(config: Any) -> str:
    """Options as YAML that `--config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def redact(value: Any) -> Any:
    """A text, or texts in a list, without credentials in URLs; other values as they are."""
    if isinstance(value, str):
        return SECRET_IN_QUERY.sub(r"\1***", SECRET_IN_URL.sub("***@", value))
    return [redact(item) for item in value] if isinstance(value, list) else value


def _is_full_disk(error: Exception) -> bool:
    # safetensors has errors of its own
    code = getattr(error, "errno", None)
    return code in {errno.ENOSPC, errno.EDQUOT} or f"(os error {errno.ENOSPC})" in str(error)


def _program_name(config_class: type) -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = config_class.__module__
    return f"python -m {spec.name if spec and module == '__main__' else module}"


def _config_file(argv: Sequence[str]) -> str | None:
    for i, argument in enumerate(argv):
        if argument == "--config" and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None


def _yaml_to_argv(path: str, known: Sequence[str]) -> list[str]:
    # YAML goes through the command line's own conversion: one set of types, one set of messages
    argv: list[str] = []
    for key, value in read_yaml(path, f"--config {path}").items():
        if f"--{key}" not in known:
            raise UserError(_unknown(f"--{key}", known, f"in {path}"))
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [value]
        argv += [f"--{key}", *map(str, values)]
    return argv


def _unknown(argument: str, known: Sequence[str], where: str) -> str:
    name = argument.partition("=")[0]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else " --help lists the known ones."
    return f"unknown option {name} {where}.{hint}"
