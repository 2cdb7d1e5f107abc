#!/usr/bin/env bash
# Run a search on hosts that share a PostgreSQL database, without Ray. Each task of the array is a `dnas worker`; tasks may
# start and end at any time.
#
#   install -m 600 /dev/stdin ~/.dnas-storage <<<'postgresql://USER:PASSWORD@HOST/dnas'     # once
#   sbatch deploy/slurm-workers.sh cifar_bc --space cifar_bc --trials 200
#
# The first argument is the study's name. The others are passed to `dnas worker`, and the first worker creates the study with
# them. To inspect the study on any machine, run `DNAS_STORAGE=$(cat ~/.dnas-storage) dnas pull cifar_bc` and then
# `dnas status cifar_bc`.
#
# Set the resources of one worker and the number of workers here, or on the command line of sbatch.
#SBATCH --job-name=dnas
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dnas-%A-%a.log
# Two minutes before the time limit the script receives a signal, stops the worker and requeues the task.
#SBATCH --signal=B:INT@120

# Each of these variables may be set before sbatch.
VENV=${VENV:-$PWD/.venv}                                      # where dnas is installed, on a disk that all nodes can access
SHARED=${SHARED:-$PWD/shared}                                 # checkpoints: a folder that all nodes can access, or s3://BUCKET/dnas
DNAS_STORAGE_FILE=${DNAS_STORAGE_FILE:-$HOME/.dnas-storage} # file with the database's address and password

set -euo pipefail
set -m # without it a background process ignores SIGINT, with which the worker is stopped

if (($# == 0)); then
    echo "usage: sbatch deploy/slurm-workers.sh STUDY [options of dnas worker]" >&2
    exit 2
fi
study=$1
shift
if [ -e "$VENV/bin/activate" ]; then
    # shellcheck source=/dev/null
    source "$VENV/bin/activate"
fi
export DNAS_DATA=${DNAS_DATA:-$PWD/data} # download the data beforehand, since no process does it before the workers start

# The password is neither in the command line nor in this script, since other users can read both.
if [ ! -r "$DNAS_STORAGE_FILE" ]; then
    echo "$DNAS_STORAGE_FILE does not exist; create it with one line, postgresql://USER:PASSWORD@HOST/DATABASE, and mode 600." >&2
    exit 2
fi
case $(stat -L -c %a "$DNAS_STORAGE_FILE") in
400 | 600) ;;
*)
    echo "$DNAS_STORAGE_FILE can be read by others; chmod 600 $DNAS_STORAGE_FILE, and change the password." >&2
    exit 2
    ;;
esac
DNAS_STORAGE=$(<"$DNAS_STORAGE_FILE")
export DNAS_STORAGE

worker=
limit=
signalled=
# shellcheck disable=SC2317 # called by a trap
stop_worker() {
    signalled=yes
    [ -z "$worker" ] || kill -INT "$worker" 2>/dev/null || true
}
trap 'limit=yes; stop_worker' INT # the time limit
trap stop_worker TERM             # scancel or preemption; Slurm itself requeues a preempted task

dnas worker "$study" --shared "$SHARED" "$@" &
worker=$!
status=0
wait "$worker" || status=$?
while [ -n "$signalled" ]; do # a signal interrupts `wait`
    signalled=
    status=0
    wait "$worker" || status=$?
done
if [ -n "$limit" ] && ((status == 130)); then # 130: interrupted; a study that had finished needs no second run
    echo "$(date): time limit reached; the worker resumes when Slurm restarts the task"
    # Not $SLURM_JOB_ID: one task has the array's own ID, which would requeue all tasks.
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
