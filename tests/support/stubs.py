"""Slurm's commands as far as the scripts in deploy/ use them, and dnas and Ray of this interpreter, for a PATH."""

import sys
from pathlib import Path

# Runs the command once a task, each on a "host" of its own: its own folder for temporary files.
SRUN = r"""#!/usr/bin/env bash
echo "srun $*" >>"$STUB/log"
tasks=1
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
trap 'kill $(jobs -p) 2>/dev/null' TERM
for ((i = 0; i < tasks; i++)); do
    host=$STUB/$tasks.$i.$BASHPID
    mkdir -p "$host"
    TMPDIR=$host "${@/--temp-dir=*/--temp-dir=$host}" &
done
wait
"""

SCONTROL = r"""#!/usr/bin/env bash
echo "scontrol $*" >>"$STUB/log"
if [ "$1 $2" = "show hostnames" ]; then
    for ((i = 1; i <= SLURM_JOB_NUM_NODES; i++)); do echo "host$i"; done
fi
"""

# dnas: says what it got, and then waits to be told to stop.
DNAS = r"""
import os, sys, time
try:
    with open(os.environ["STUB"] + "/log", "a") as log:
        print("dnas", *sys.argv[1:], "DNAS_STORAGE=" + os.environ.get("DNAS_STORAGE", ""), file=log)
    time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
except KeyboardInterrupt:
    sys.exit(130)
"""

# ray: a head answers at its port until it is ended.
RAY = r"""
import os, socket, sys, time
options = dict(word.lstrip("-").split("=") for word in sys.argv if "=" in word)
if "STUB_NO_RAY" in os.environ:
    sys.exit("no")
with socket.create_server((options["node-ip-address"], int(options["port"]))):
    time.sleep(200)  # longer than any test waits
"""

PYTHON = """
print("the nodes are there")
"""


def put(folder: Path, *, fake: bool) -> None:
    """Writes the stubs into `folder`. fake: dnas and Ray only pretend, else they are those of this interpreter."""
    fakes = {"python": PYTHON, "ray": RAY, "dnas": DNAS}
    ours = {"python": "", "ray": "-m ray.scripts.scripts", "dnas": "-m dnas.cli"}
    texts = {"srun": SRUN, "scontrol": SCONTROL}
    for name, what in ours.items():
        if fake:
            file = folder / f"fake_{name}.py"
            file.write_text(fakes[name])
            what = f'"{file}"'
        texts[name] = f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n'
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
