#!/usr/bin/env bash
# A search by hosts that share a PostgreSQL, without Ray: each task of the array is a `dnas worker`. Tasks come and go.
#
#   install -m 600 /dev/stdin ~/.dnas-storage <<<'postgresql://USER:PASSWORD@HOST/dnas'     # once
#   sbatch deploy/slurm-workers.sh cifar_bc --space cifar_bc --trials 200
#
# First the study's name, then what goes to `dnas worker`; the first that comes begins the study with it. To look at it from
# any machine: `DNAS_STORAGE=$(cat ~/.dnas-storage) dnas pull cifar_bc`, then `dnas status cifar_bc`.
#
# Change here, or on the command line of sbatch: what one worker takes, and how many there are.
#SBATCH --job-name=dnas
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dnas-%A-%a.log
# Two minutes before the time limit the script is told, to stop the worker and queue the task again.
#SBATCH --signal=B:INT@120

# Each may be set before sbatch.
VENV=${VENV:-$PWD/.venv}                                      # where dnas is installed; on a disk that all nodes see
SHARED=${SHARED:-$PWD/shared}                                 # checkpoints: a folder that all nodes see, or s3://BUCKET/dnas
DNAS_STORAGE_FILE=${DNAS_STORAGE_FILE:-$HOME/.dnas-storage} # the database's address, with its password

set -euo pipefail
set -m # or bash would have the worker, in the background, ignore Ctrl-C, which is how it is told to stop

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
export DNAS_DATA=${DNAS_DATA:-$PWD/data} # have the data there before: here nobody downloads first

# The password stands in no command line and no script, since others can read both.
if [ ! -r "$DNAS_STORAGE_FILE" ]; then
    echo "$DNAS_STORAGE_FILE is not there: it holds one line, postgresql://USER:PASSWORD@HOST/DATABASE, with mode 600." >&2
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
told=
# shellcheck disable=SC2317 # a trap calls it
stop_worker() {
    told=yes
    [ -z "$worker" ] || kill -INT "$worker" 2>/dev/null || true
}
trap 'limit=yes; stop_worker' INT # the time limit
trap stop_worker TERM             # scancel, or preemption: Slurm queues a preempted task again by itself

dnas worker "$study" --shared "$SHARED" "$@" &
worker=$!
status=0
wait "$worker" || status=$?
while [ -n "$told" ]; do # a signal ends a `wait` early
    told=
    status=0
    wait "$worker" || status=$?
done
if [ -n "$limit" ] && ((status == 130)); then # 130: interrupted; what was done by then needs no second run
    echo "$(date): the time limit; the task goes on when Slurm starts it again"
    # Not $SLURM_JOB_ID: that of one task is the array's own, and would queue all of them again.
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
