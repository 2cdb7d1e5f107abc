"""Stand-ins on PATH for the Slurm commands that the scripts in deploy/ use, and for dnas and Ray."""

import sys
from pathlib import Path

# Runs the command once per task. Each task has its own "host", a folder for temporary files.
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

# dnas: logs its arguments and waits to be stopped.
DNAS = r"""
import os, sys, time
try:
    with open(os.environ["STUB"] + "/log", "a") as log:
        print("dnas", *sys.argv[1:], "DNAS_STORAGE=" + os.environ.get("DNAS_STORAGE", ""), file=log)
    time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
except KeyboardInterrupt:
    sys.exit(130)
"""

# ray: a head node that listens at its port until it is stopped.
RAY = r"""
import os, socket, sys, time
options = dict(word.lstrip("-").split("=") for word in sys.argv if "=" in word)
if "STUB_NO_RAY" in os.environ:
    sys.exit("no")
with socket.create_server((options["node-ip-address"], int(options["port"]))):
    time.sleep(200)  # longer than any test waits
"""

PYTHON = """
print("the nodes have joined")
"""


def put(folder: Path, *, fake: bool) -> None:
    """Write the stand-ins to `folder`. fake: use stand-ins for dnas and Ray as well, not those of this interpreter."""
    fakes = {"python": PYTHON, "ray": RAY, "dnas": DNAS}
    ours = {"python": "", "ray": "-m ray.scripts.scripts", "dnas": "-m dnas.cli"}
    texts = {"srun": SRUN, "scontrol": SCONTROL}
    for name, arguments in ours.items():
        if fake:
            file = folder / f"fake_{name}.py"
            file.write_text(fakes[name])
            arguments = f'"{file}"'
        texts[name] = f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n'
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
