#!/usr/bin/env bash
# The tests on a real Slurm, in one command: installs it (Debian and Ubuntu, as root), starts a controller and three
# nodes, runs the tests and stops them. Arguments go to pytest.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin
for program in slurmctld slurmd munged sbatch ip unshare nsenter pgrep; do
    if command -v "$program" >/dev/null; then continue; fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurm-wlm munge iproute2 util-linux procps
    break
done
NEEDS=test
. "$ROOT/launch/setup.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest -m slurm tests/slurm --durations=0 --durations-min=1 "$@"
