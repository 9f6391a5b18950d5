#!/bin/sh
# Many stages at once: each line of a file (STAGE --flags, quoted as in a shell) as one task of an array, then a table of
# the best run of each task.
#
#   sh launch/slurm/sweep.sh runs/sweep.txt [--gpus-per-node=1 ... options of sbatch]
#
# AT_ONCE (default 8) tasks run at the same time. Submitted again, what is finished is not repeated. The table waits for
# a good end of all; sweep_table.py FILE shows any time what there is.
set -eu
if [ ! -s "${1:-}" ]; then echo "usage: sh launch/slurm/sweep.sh FILE [options of sbatch]" >&2 && exit 2; fi
TASKS_FILE=$(realpath "$1")
shift
export TASKS_FILE
TINYBERT_HOME=${TINYBERT_HOME:-$(cd "$(dirname "$0")/../.." && pwd)}
export TINYBERT_HOME
here=$TINYBERT_HOME/launch/slurm
if grep -n '^[[:space:]]*$' "$TASKS_FILE" >&2; then echo "these lines of $TASKS_FILE are empty" >&2 && exit 2; fi
last=$(($(grep -c '' "$TASKS_FILE") - 1))
array=$(sbatch --parsable --job-name=sweep --nodes=1 --gpus-per-node=1 --cpus-per-task=8 --output=%x-%A_%a.out \
    "--array=0-$last%${AT_ONCE:-8}" "$@" "$here/stage.sbatch")
array=${array%%;*}
table=$(sbatch --parsable --output=%x-%j.out "$@" --job-name=sweep-table --nodes=1 --gpus-per-node=0 --cpus-per-task=1 \
    --time=10 "--dependency=afterok:$array" --kill-on-invalid-dep=yes \
    --wrap "python3 '$here/sweep_table.py' '$TASKS_FILE'")
echo "array $array: $((last + 1)) runs; table ${table%%;*}: $TASKS_FILE.md"
