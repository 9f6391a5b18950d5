#!/bin/bash
# Run by stage.sbatch on each node: starts the stage here, and hands signals to the processes that train.
#
# Slurm signals, as the cluster is set up, all processes of a job or only this one. A launcher dies of SIGUSR1, and one
# of a single process passes nothing on: therefore the launcher ignores SIGUSR1, and what arrives here goes to its children.
set -u

# Nothing here reaches the internet: models and data were fetched before (prefetch.sh), wandb writes files to be synced.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
# A launcher that is asked to end kills what has not saved within this time; its own 30 s are short for a large model.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-540}

# NCCL finds the fastest way between GPUs by itself; what to set when it does not (sbatch --export=ALL,NAME=VALUE):
#   NCCL_DEBUG=INFO           which network it took: "NET/IB" is InfiniBand, "NET/Socket" plain TCP, several times slower
#   NCCL_SOCKET_IFNAME=eth0   the interface by which nodes find each other; "^lo,docker" excludes. The first thing to set
#                             when a job hangs before its first step on several nodes only (gloo: GLOO_SOCKET_IFNAME)
#   NCCL_IB_HCA=mlx5          which InfiniBand adapters; NCCL_IB_DISABLE=1 goes without, to tell whether it is at fault
#   NCCL_P2P_DISABLE=1        no GPU-to-GPU copies: for virtual machines whose copies hang
# A process that hangs is found by the stage itself (--hang_timeout_s), which then tells where each of them stands.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# The node's own disk: temporary files and compiled kernels, which thousands of small files on a shared disk slow down.
scratch=${SCRATCH:-${TMPDIR:-/tmp}}/tinybert-$SLURM_JOB_ID
mkdir -p "$scratch" || exit
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton
arguments=()
for argument in "$@"; do
    for path in ${COPY_TO_SCRATCH:-}; do
        if [ "$argument" != "$path" ]; then continue; fi
        argument=$scratch/data/${path#/}
        mkdir -p "$(dirname "$argument")"
        cp -RLp "$path" "$argument" || exit
        echo "$(hostname): copied $path to $argument"
    done
    arguments+=("$argument")
done

case $START in
launcher)
    # Each process's output, with its number before every line, here and in a file of its own.
    # Rendezvous is static: Slurm knows the nodes, and starts the job again when one is lost.
    # shellcheck disable=SC2016
    export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[${rank}] '
    command=("$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG"
        --num_machines "$SLURM_STEP_NUM_NODES" --machine_rank "$SLURM_NODEID"
        --num_processes $((SLURM_STEP_NUM_NODES * PROCESSES_PER_NODE))
        --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT"
        --deepspeed_multinode_launcher standard --max_restarts 0
        --tee 3 --log_dir "$LOGS/node-$SLURM_NODEID"
        -m "tinybert_dist.stages.$STAGE")
    ;;
share) command=("$PYTHON" -m "tinybert_dist.stages.$STAGE" --num_workers "$NUM_CPUS") ;;
alone) command=("$PYTHON" -m "tinybert_dist.stages.$STAGE") ;;
esac

echo "$(hostname): node $SLURM_NODEID of $SLURM_STEP_NUM_NODES, $STAGE"
(trap '' USR1 && exec "${command[@]}" "${arguments[@]}") &
stage=$!
asked=''
pass_on() {
    local children
    children=$(pgrep -P "$stage" || true)
    if [ "$START" != launcher ]; then children=$stage; fi
    asked="$asked $children"
    # shellcheck disable=SC2086
    kill -s "$1" $children 2>/dev/null
}
ask=USR1
if [ -n "$KEEPS" ]; then ask=TERM; fi # nothing has to be saved
trap 'pass_on $ask' USR1
trap 'pass_on TERM' TERM
while kill -0 "$stage" 2>/dev/null; do wait "$stage"; done # a trapped signal ends `wait`
wait "$stage" # its exit code is remembered
rc=$?
# A launcher may end before the processes that are still saving.
for process in $asked; do
    while kill -0 "$process" 2>/dev/null; do sleep 0.2; done
done
# Not finished, and nothing failed: --kill-on-bad-exit must not end the other nodes, which end by themselves.
if [ -n "$KEEPS" ] && [ -n "$asked" ] && [ "$rc" != 0 ]; then
    touch "$LOGS/stopped-$SLURM_NODEID"
    exit
fi
exit "$rc"
