# Sourced by the other scripts here, which set ROOT: leaves in PYTHON an interpreter that has what this project needs.
# POSIX sh. Nothing outside the virtual environment is changed. Variables:
#   TINYBERT_VENV  virtual environment to make or reuse (default: .venv in the checkout)
#   PYTHON         interpreter to start from (default: the first Python >= 3.10 among python3, python, python3.14 ...)
#   NEEDS          what an already active environment must have: "run" (default) or "test"

set -eu
if (set -o pipefail) 2>/dev/null; then set -o pipefail; fi

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON does not run, or is older than 3.10. Name a Python >= 3.10."
        return
    fi
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
        if is_supported "$candidate"; then PYTHON=$candidate; return; fi
    done
    found=$(python3 --version 2>&1 || true)
    fail "Python 3.10 or later is needed (python3 here: ${found:-none}). Install one, or set PYTHON=/path/to/python3."
}

# exit 0: every requirement of pyproject.toml is installed in a fitting version
has_requirements() {
    "$PYTHON" - "$ROOT/pyproject.toml" "${NEEDS:-run}" <<'PYTHON_END' 2>/dev/null
import importlib.metadata
import re
import sys

from packaging.requirements import Requirement

text = open(sys.argv[1], encoding="utf-8").read()
lists = [re.search(r"^dependencies = \[(.*?)^\]", text, re.S | re.M)[1]]
if sys.argv[2] == "test":
    lists.append(re.search(r"^test = \[(.*?)\]$", text, re.S | re.M)[1])
for line in re.findall(r'"([^"]+)"', " ".join(lists)):
    requirement = Requirement(line)
    version = importlib.metadata.version(requirement.name)
    if not requirement.specifier.contains(version, prereleases=True):
        sys.exit(1)
PYTHON_END
}

# prints the folder of a torch that fits, or nothing
fitting_torch() {
    "$1" - <<'PYTHON_END' 2>/dev/null || true
import importlib.metadata

torch = importlib.metadata.distribution("torch")
major, minor = map(int, torch.version.split(".")[:2])
if (2, 11) <= (major, minor) < (2, 14):
    print(torch.locate_file(""))
PYTHON_END
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

pip_install() { "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

make_environment() {
    base=$("$PYTHON" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
    base_torch=$(fitting_torch "$base")
    own_torch=$(fitting_torch "$PYTHON")
    say "making $VENV with $("$PYTHON" --version 2>&1)"
    options=
    if [ -n "$base_torch" ]; then options=--system-site-packages; fi
    "$PYTHON" -m venv --clear $options "$VENV" ||
        fail "python -m venv failed. Install the venv module (python3-venv on Debian and Ubuntu), or set PYTHON."
    if [ -n "$base_torch" ]; then
        say "taking the torch in $base_torch"
    elif [ -n "$own_torch" ]; then
        # the active environment is a virtual one itself: --system-site-packages would skip it
        say "taking the torch in $own_torch"
        site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
        printf '%s\n' "$own_torch" >"$site/environment_torch.pth"
    elif ! has_nvidia_gpu; then
        say "installing torch (no NVIDIA GPU here)"
        pip_install torch==2.13.0
    fi
}

stamp() { cksum <"$ROOT/pyproject.toml"; }

VENV=${TINYBERT_VENV:-$ROOT/.venv}
MARKER=$VENV/.tinybert-setup
if [ -f "$MARKER" ] && [ "$(cat "$MARKER")" = "$(stamp)" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
    PYTHON=$VENV/bin/python
else
    find_python
    if [ -z "${TINYBERT_VENV:-}" ] && has_requirements; then
        say "using the active environment: $(command -v "$PYTHON")"
    else
        if [ ! -f "$MARKER" ] || ! "$VENV/bin/python" -c '' 2>/dev/null; then
            # --clear empties the folder: never one that holds something else
            if [ -d "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
                fail "$VENV exists and is no virtual environment. Set TINYBERT_VENV to another folder."
            fi
            make_environment
        fi
        say "installing the requirements of pyproject.toml"
        pip_install -e "$ROOT[test]"
        stamp >"$MARKER"
        PYTHON=$VENV/bin/python
        say "ready: $PYTHON"
    fi
fi
# the checkout comes first, whatever version the environment may have installed
PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH PYTHON
