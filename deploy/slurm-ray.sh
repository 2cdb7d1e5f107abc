#!/usr/bin/env bash
# A search on the nodes of a Slurm job: Ray's head on the first node, a Ray node on each other, the search beside the head.
#
#   sbatch deploy/slurm-ray.sh --space cifar_bc --trials 200 --cpus-per-trial 4
#
# What stands behind the script's name goes to `dnas search`. Submit from a folder that all nodes see: studies/ grows there.
# The same command goes on where a job ended; a job that reaches its time limit, or is preempted, does so by itself.
#
# Change here, or on the command line of sbatch: what the nodes are.
#SBATCH --job-name=dnas
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dnas-%j.log
# A node that fails ends a Slurm job, unless:
#SBATCH --no-kill
# Two minutes before the time limit the script is told, to stop the search and queue the job again.
#SBATCH --signal=B:INT@120

# Each may be set before sbatch.
VENV=${VENV:-$PWD/.venv}                                # where dnas is installed; on a disk that all nodes see
SHARED=${SHARED:-$PWD/shared}                           # checkpoints: a folder that all nodes see, or s3://BUCKET/dnas
HEAD_IP=${HEAD_IP:-$(hostname -I | cut -d' ' -f1)}      # where there are several networks: of the fast one
RAY_PORT=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # so that two jobs on one machine do not meet
RAY_TMP=${RAY_TMP:-/tmp/ray-$SLURM_JOB_ID}              # on each node; short, since sockets lie in it
CPUS=${CPUS:-${SLURM_CPUS_PER_TASK:-1}}                 # of each node
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-0}}
WAIT_SECONDS=${WAIT_SECONDS:-300} # for the nodes; a cold disk takes minutes to give out Python

set -euo pipefail
set -m # or bash would have the search, in the background, ignore Ctrl-C, which is how it is told to stop

if [ -e "$VENV/bin/activate" ]; then
    # shellcheck source=/dev/null
    source "$VENV/bin/activate"
fi
export DNAS_DATA=${DNAS_DATA:-$PWD/data} # the driver downloads, the nodes read

# A Ray without a token lets everybody on the network run code as you. A fresh one for each start, in the environment alone:
# a command line can be read by others.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
unset RAY_ADDRESS

address=$HEAD_IP:$RAY_PORT
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*} # no `| head`: scontrol could die of the closed pipe
others=$((SLURM_JOB_NUM_NODES - 1))
# 256 MiB of object store are more than dnas uses; Ray would take a third of the memory.
node=(ray start --block --disable-usage-stats --temp-dir="$RAY_TMP" --num-cpus="$CPUS" --num-gpus="$GPUS"
    --object-store-memory=$((256 * 1024 * 1024)))
# The end of one node must not end the others; srun does not take --cpus-per-task from sbatch.
step=(srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=0 --no-kill)

steps=()
driver=
limit=
told=
# shellcheck disable=SC2317 # a trap calls it
stop_nodes() {
    ((${#steps[@]} == 0)) || kill "${steps[@]}" 2>/dev/null || true
    wait
}
trap stop_nodes EXIT
trap 'limit=yes; stop_search' INT # the time limit
trap stop_search TERM             # scancel, or preemption: Slurm queues a preempted job again by itself
# shellcheck disable=SC2317
stop_search() {
    told=yes
    if [ -n "$driver" ]; then
        kill -INT "$driver" 2>/dev/null || true
    else
        exit 143
    fi
}

echo "$(date): Ray's head on $head, at $address"
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" \
    "${node[@]}" --head --node-ip-address="$HEAD_IP" --port="$RAY_PORT" --include-dashboard=false &
steps+=($!)
deadline=$((SECONDS + WAIT_SECONDS))
until (: >"/dev/tcp/$HEAD_IP/$RAY_PORT") 2>/dev/null; do
    if ((SECONDS > deadline)) || ! kill -0 "${steps[0]}" 2>/dev/null; then
        echo "Ray's head did not start on $head; see above, and $RAY_TMP there." >&2
        exit 1
    fi
    sleep 1
done
if ((others)); then
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" "${node[@]}" --address="$address" &
    steps+=($!)
fi
# All nodes, so that the plan that the search prints is right. One that comes late, or never, is no reason to give up the
# others: dnas uses what is there, and what joins later.
python - "$address" "$SLURM_JOB_NUM_NODES" "$((deadline - SECONDS))" <<'PYTHON'
import sys, time
import ray

address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address, log_to_driver=False, logging_level="ERROR")
end = time.monotonic() + seconds
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < end:
    time.sleep(1)
print(f"{there} of {wanted} nodes are there", flush=True)
PYTHON

dnas search "$@" --executor ray --ray-address "$address" --shared "$SHARED" &
driver=$!
status=0
wait "$driver" || status=$?
while [ -n "$told" ]; do # a signal ends a `wait` early
    told=
    status=0
    wait "$driver" || status=$?
done
if [ -n "$limit" ] && ((status == 130)); then # 130: interrupted; what was done by then needs no second run
    echo "$(date): the time limit; the job goes on when Slurm starts it again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
