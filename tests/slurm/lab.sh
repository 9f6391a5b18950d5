#!/usr/bin/env bash
# A real Slurm cluster of virtual nodes on one machine. Nothing in /etc or in the machine's network changes, and no
# service is started: controller and node daemons live in namespaces and die with them. Root, or user namespaces.
#
#   lab.sh up DIR [NODES] [CPUS] [GPUS]   starts it; returns when every node is idle
#   lab.sh exec DIR COMMAND...            runs a command on the login node (sbatch, squeue, scontrol, ...)
#   lab.sh on DIR NODE COMMAND...         runs a command on a node
#   lab.sh cut|heal DIR NODE              pulls or plugs a node's network cable
#   lab.sh kill|start DIR NODE            cuts a node's power: all its processes die at once; switches it on again
#   lab.sh down DIR                       ends everything
#
# Each node has its own host name, address, process table, /tmp and /dev/shm; DIR must not lie in those. GPUs are not
# there: Slurm only counts them. CGROUPS=1: processes are tracked by cgroup (version 1), as on most clusters; one such
# lab at a time. LAB_HOLD=1: the lab ends when the other end of its standard input is closed.
set -euo pipefail
command=$1 DIR=$(realpath -m "$2")
shift 2
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$DIR/etc/slurm.conf
SELF=$(realpath "$0")
if [ "$(id -u)" = 0 ]; then NEW=() ENTER=(); else
    NEW=(--user --map-current-user --keep-caps) ENTER=(--user --preserve-credentials)
fi
enter() { nsenter -t "$1" "${ENTER[@]}" --net --uts --mount --pid --root --wd="$PWD" "${@:2}"; }

configure() {
    local nodes=$1 cpus=$2 gpus=$3 track=linuxproc
    mkdir -p "$DIR"/{etc,run,log,state,spool}
    chmod 755 "$DIR" "$DIR/run"
    [ -f "$DIR/etc/munge.key" ] || { head -c 128 /dev/urandom >"$DIR/etc/munge.key" && chmod 400 "$DIR/etc/munge.key"; }
    {
        echo "127.0.0.1 localhost"
        echo "10.77.0.1 ctl"
        for i in $(seq "$nodes"); do echo "10.77.0.$((10 + i)) node$i"; done
    } >"$DIR/etc/hosts"
    if [ -n "${CGROUPS:-}" ]; then
        track=cgroup
        printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n' >"$DIR/etc/cgroup.conf"
    fi
    echo "NodeName=node[1-$nodes] Name=gpu Count=$gpus File=/dev/tty[0-$((gpus - 1))]" >"$DIR/etc/gres.conf"
    # cred_expire is also how long a requeued job waits (default 120 s), SlurmdTimeout when a node is taken for lost
    # (300), KillWait what lies between TERM and KILL (30). config_overrides: more CPUs than this machine has.
    # Partition low is preempted by debug and has GraceTime to save.
    cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=ctl(10.77.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/run/munge.sock,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/$track
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.txt
ReturnToService=2
SlurmdTimeout=${SLURMD_TIMEOUT:-10}
KillWait=${KILL_WAIT:-15}
OverTimeLimit=0
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=0
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName=node[1-$nodes] NodeAddr=10.77.0.[11-$((10 + nodes))] NodeHostname=node[1-$nodes] CPUs=$cpus RealMemory=16000 Gres=gpu:$gpus State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=10 State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 State=UP
CONF
}

# the process of a node with number 1 in its own table, seen from here
node_pid() {
    for pid in $(pgrep -f -- "$SELF _slurmd $DIR ${1#node}\$"); do
        if [ "$(awk '/^NSpid/ {print $NF}' "/proc/$pid/status")" = 1 ]; then
            echo "$pid"
            return
        fi
    done
    return 1
}

case $command in
up)
    nodes=${1:-2}
    configure "$nodes" "${2:-8}" "${3:-2}"
    setsid unshare "${NEW[@]}" --net --uts --mount --pid --fork --kill-child bash "$SELF" _lab "$DIR" "$nodes" \
        4<&0 </dev/null >"$DIR/log/lab.log" 2>&1 &
    for _ in $(seq 300); do
        [ -f "$DIR/run/ready" ] && break
        sleep 0.05
    done
    pgrep -P $! >"$DIR/run/lab.pid"
    for _ in $(seq 300); do
        idle=$(enter "$(cat "$DIR/run/lab.pid")" sinfo -h -N -p debug -t idle -o %N 2>/dev/null | wc -l)
        if [ "$idle" = "$nodes" ]; then exit 0; fi
        sleep 0.1
    done
    echo "lab: the nodes do not become idle" >&2
    tail -n 5 "$DIR"/log/* >&2
    bash "$SELF" down "$DIR"
    exit 1
    ;;
_lab) # number 1 of the lab
    mount --make-rprivate /
    mount -t proc proc /proc
    mount --bind "$DIR/etc/hosts" /etc/hosts
    mount -t tmpfs tmpfs /run && mkdir -p /run/netns
    hostname ctl
    ip link set lo up
    ip link add br0 type bridge
    ip addr add 10.77.0.1/24 dev br0
    ip link set br0 up
    munged --force --key-file="$DIR/etc/munge.key" --socket="$DIR/run/munge.sock" --pid-file="$DIR/run/munged.pid" \
        --log-file="$DIR/log/munged.log" --seed-file="$DIR/run/munge.seed"
    slurmctld -D -f "$SLURM_CONF" >"$DIR/log/slurmctld.out" 2>&1 &
    for i in $(seq "$1"); do bash "$SELF" _node "$DIR" "$i"; done
    mkfifo "$DIR/run/control"
    exec 3<>"$DIR/run/control"
    { [ -n "${LAB_HOLD:-}" ] && cat >/dev/null && echo exit >"$DIR/run/control"; } <&4 &
    exec 4<&-
    touch "$DIR/run/ready"
    while :; do # what needs this process's rights; reaping the rest of the time
        if read -r -t 5 -u 3 verb i; then
            case $verb in
            node) bash "$SELF" _node "$DIR" "$i" || true ;;
            up | down) ip link set "v$i" "$verb" || true ;;
            exit) exit 0 ;;
            esac
        fi
    done
    ;;
_node) # in the lab: the cable of node $1, and its namespaces
    ip netns del "node$1" 2>/dev/null || true
    ip link del "v$1" 2>/dev/null || true # a dead namespace takes its cable along only some time later
    ip netns add "node$1"
    ip link add "v$1" type veth peer name eth0 netns "node$1"
    ip link set "v$1" master br0 up
    setsid nsenter --net="/run/netns/node$1" unshare --uts --mount --pid --fork --kill-child \
        bash "$SELF" _slurmd "$DIR" "$1" </dev/null >"$DIR/log/node$1.out" 2>&1 &
    ;;
_slurmd) # number 1 of node $1: slurmd itself there would not reap dead jobs
    mount --make-rprivate /
    mount -t proc proc /proc
    for folder in /tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
    hostname "node$1"
    ip link set lo up
    ip addr add "10.77.0.$((10 + $1))/24" dev eth0
    ip link set eth0 up
    mkdir -p "$DIR/spool/node$1"
    slurmd -D -N "node$1" -f "$SLURM_CONF" &
    while :; do wait -n || sleep 1; done
    ;;
exec) enter "$(cat "$DIR/run/lab.pid")" "$@" ;;
on)
    pid=$(node_pid "$1")
    enter "$pid" "${@:2}"
    ;;
kill) kill -9 "$(node_pid "$1")" ;;
start) echo "node ${1#node}" >"$DIR/run/control" ;;
cut) echo "down ${1#node}" >"$DIR/run/control" ;;
heal) echo "up ${1#node}" >"$DIR/run/control" ;;
down)
    kill -9 "$(cat "$DIR/run/lab.pid")" 2>/dev/null || true
    rm -f "$DIR/run/lab.pid" "$DIR/run/ready" "$DIR/run/control"
    if [ -f "$DIR/etc/cgroup.conf" ]; then # Slurm leaves its folders there
        for _ in $(seq 20); do
            find /sys/fs/cgroup/freezer/slurm_node* -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.1
        done
    fi
    ;;
esac
