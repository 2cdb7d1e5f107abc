#!/usr/bin/env bash
# Run a search on the nodes of a Slurm job. Ray's head and the search run on the first node, Ray nodes on the others.
#
#   sbatch deploy/slurm-ray.sh --space cifar_bc --trials 200 --cpus-per-trial 4
#
# The arguments after the script's name are passed to `dnas search`. Submit it from a folder that all nodes can access;
# studies/ is written there. The same command resumes a search whose job has ended. A job that reaches its time limit or is
# preempted is requeued and resumes by itself.
#
# Describe your nodes here, or on the command line of sbatch.
#SBATCH --job-name=dnas
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dnas-%j.log
# Without this option, the failure of one node ends the whole job.
#SBATCH --no-kill
# Two minutes before the time limit the script receives a signal, stops the search and requeues the job.
#SBATCH --signal=B:INT@120

# Each of these variables may be set before sbatch.
VENV=${VENV:-$PWD/.venv}                                # where dnas is installed, on a disk that all nodes can access
SHARED=${SHARED:-$PWD/shared}                           # checkpoints: a folder that all nodes can access, or s3://BUCKET/dnas
HEAD_IP=${HEAD_IP:-$(hostname -I | cut -d' ' -f1)}      # with several networks, the address in the fast one
RAY_PORT=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # differs between two jobs on one machine
RAY_TMP=${RAY_TMP:-/tmp/ray-$SLURM_JOB_ID}              # on each node; a short path, since it contains sockets
CPUS=${CPUS:-${SLURM_CPUS_PER_TASK:-1}}                 # CPUs of each node
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-0}}
WAIT_SECONDS=${WAIT_SECONDS:-300} # for the nodes to join; loading Python from a cold disk takes minutes

set -euo pipefail
set -m # without it a background process ignores SIGINT, with which the search is stopped

if [ -e "$VENV/bin/activate" ]; then
    # shellcheck source=/dev/null
    source "$VENV/bin/activate"
fi
export DNAS_DATA=${DNAS_DATA:-$PWD/data} # the driver downloads the data, the nodes read them

# Without a token, anyone on the network can run code as you through Ray. Each start uses a new token, passed in the
# environment because other users can read command lines.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
unset RAY_ADDRESS

address=$HEAD_IP:$RAY_PORT
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*} # not `| head`, with which scontrol could fail on the closed pipe
others=$((SLURM_JOB_NUM_NODES - 1))
# dnas uses less than 256 MiB of object store; Ray's default is a third of the memory.
node=(ray start --block --disable-usage-stats --temp-dir="$RAY_TMP" --num-cpus="$CPUS" --num-gpus="$GPUS"
    --object-store-memory=$((256 * 1024 * 1024)))
# The end of one node must not end the others. srun does not inherit --cpus-per-task from sbatch.
step=(srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=0 --no-kill)

steps=()
driver=
limit=
signalled=
# shellcheck disable=SC2317 # called by a trap
stop_nodes() {
    ((${#steps[@]} == 0)) || kill "${steps[@]}" 2>/dev/null || true
    wait
}
trap stop_nodes EXIT
trap 'limit=yes; stop_search' INT # the time limit
trap stop_search TERM             # scancel or preemption; Slurm itself requeues a preempted job
# shellcheck disable=SC2317
stop_search() {
    signalled=yes
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
# Wait for all nodes, so that the search prints the right plan. If one is late or missing, start with the others; dnas also
# uses nodes that join later.
python - "$address" "$SLURM_JOB_NUM_NODES" "$((deadline - SECONDS))" <<'PYTHON'
import sys, time
import ray

address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address, log_to_driver=False, logging_level="ERROR")
end = time.monotonic() + seconds
while (joined := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < end:
    time.sleep(1)
print(f"{joined} of {wanted} nodes have joined", flush=True)
PYTHON

dnas search "$@" --executor ray --ray-address "$address" --shared "$SHARED" &
driver=$!
status=0
wait "$driver" || status=$?
while [ -n "$signalled" ]; do # a signal interrupts `wait`
    signalled=
    status=0
    wait "$driver" || status=$?
done
if [ -n "$limit" ] && ((status == 130)); then # 130: interrupted; a search that had finished needs no second run
    echo "$(date): time limit reached; the search resumes when Slurm restarts the job"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
