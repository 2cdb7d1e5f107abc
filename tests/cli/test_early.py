"""Plans and refusals that need no torch come before anything slow is imported."""

import json
import subprocess
import sys
from pathlib import Path

SLOW = ("torch", "numpy", "scipy", "pandas", "optuna", "matplotlib", "ray", "psycopg", "sklearn", "PIL", "seaborn")
REFUSALS = """
report nope | status nope | plot importance nope | plot reuse nope | plot reuse nope -o x.gif | importance nope
path nope | verify nope | extend nope | replay nope | doctor nope | export nope -o x.onnx | export nope -o x.foo
eval nope | predict nope x.png | pull nope | worker nope | worker nope --storage sqlite:///x | cost nope
search --space nope --trials 3 | search --space digits_bc --trials x | search --space digits_bc
search --space digits_bc --trials 3 --sampler nope | search --space digits_bc --trials 3 --stopping nope
search --space digits_bc --trials 3 --objective nope | search --space digits_bc --trials 3 --dataset nope
search --space digits_bc --trials 3 --augment nope | search --space digits_bc --trials 3 --subset 3
search --space digits_bc --trials 3 --executor nope | search --space digits_bc --trials 3 --recipe nope
search --space digits_bc --trials 3 --max-params 10 | search --space digits_bc --trials 3 --mirror nope
search --space digits_bc --trials 3 --device nope | search --space digits_bc --trials 3 --kernels nope
search --space digits_bc --trials 3 --device cuda:9 | search --space digits_bc --trials 3 --kernels triton
train nope --dataset digits | train densenet121 --dataset nope | train densenet121 --dataset digits --recipe nope
train densenet121 --dataset digits --device cuda:9 | train densenet121 --dataset digits --kernels triton
ablate nope | ablate digits_connectivity --seeds x | ablate digits_connectivity --device cuda:9
ablate digits_connectivity --budget 3 | reproduce nope | reproduce fig4-left --budget nope
reproduce fig4-left --device cuda:9 | plot importence nope | completion nope
"""
PLANS = """
search --space digits_bc --trials 20 --dry-run | search --space cifar_bc --trials 20 --dry-run
ablate digits_connectivity --dry-run | ablate timed.toml --dry-run | reproduce table2 --dry-run
"""
# Runs each command with the slow packages made impossible to import. A plan ends where torch is imported for its time.
PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

class Reached(BaseException):
    pass

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in SLOW:
            raise Reached(name)

sys.meta_path.insert(0, Block())
import dnas.training.defaults, dnas.machine
dnas.training.defaults.cuda_devices = dnas.machine.cuda_devices = lambda: 0
from dnas.cli import main
results = []
for command in COMMANDS:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(command.split())
        except SystemExit as end:
            status = end.code
        except Reached as slow:
            status = f"imports {slow}"
    results.append((command, status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def test_plans_and_refusals_precede_slow_imports(tmp_path: Path) -> None:
    plans, refusals = (
        [line.strip() for line in text.replace("\n", "|").split("|") if line.strip()] for text in (PLANS, REFUSALS)
    )
    repository = Path(__file__).parents[2]
    text = (repository / "studies/digits_connectivity.toml").read_text(encoding="utf-8")
    (tmp_path / "timed.toml").write_text(text.replace('equal = "params"', 'equal = "seconds"'))
    code = f"SLOW, COMMANDS = {SLOW!r}, {[*plans, *refusals]!r}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for command, status, out, err in json.loads(done.stdout):
        if command in plans:
            assert str(status).startswith("imports "), (command, status, err)
            assert "\ndisk " in out, (command, out)
        else:
            assert status == 2, (command, status)
            assert err.startswith("dnas"), (command, err)
            assert not out, command
