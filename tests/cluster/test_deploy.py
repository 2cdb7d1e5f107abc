"""Tests of the files in deploy/ and of docs/cluster.md, which are parsed by their programs or executed with stand-ins.

These tests use no Slurm, Kubernetes or cloud. They use Ray's validator and command line, dnas's parser, bash, and
stand-ins for srun and scontrol that run the scripts' commands on this machine.
"""

import argparse
import copy
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_commands

from dnas.api.options import SearchOptions, complete
from dnas.cli import make_parser
from dnas.space.parse import space_files
from dnas.study.folder import StudyFolder
from tests.support import stubs
from tests.support.patience import patience
from tests.support.ray_nodes import PATIENCE, QUICK, ROOT

DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "cluster.md"
# Commands and options that this version may lack. They are parsed only if they exist.
OPTIONAL = ("worker", "pull", "train --gpus")
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
FILES = [PAGE, *sorted(path for path in DEPLOY.iterdir() if not path.name.endswith(".dockerignore"))]


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


# --- every command line ---------------------------------------------------------------------------------------------


parser = cache(make_parser)


def commands_of() -> dict[str, argparse.ArgumentParser]:
    (choices,) = [action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(choices)


def text_of(path: Path) -> str:
    """Return the text of a file with continued lines joined."""
    text = path.read_text()
    if path.suffix == ".yaml":  # folded scalars
        text += "\n" + "\n".join(strings_of(list(yaml.safe_load_all(text))))
    return re.sub(r"\\\n\s*", "", text)


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from strings_of(item)
    elif isinstance(value, str):
        yield value


def lines_of(path: Path, program: str, names: str = r"[a-z-]+") -> list[str]:
    """Return the command lines of `program` in a file, with at least one argument: `dnas worker` alone is a name."""
    lines = re.findall(rf"(?<![\w./-]){program} (?:{names}) [^`#|;&)\n]+", text_of(path))
    # A quoted command line ends at its closing quote.
    return [line[: line.index("'")] if line.count("'") % 2 else line for line in lines]


def dnas_lines() -> list[tuple[str, str]]:
    names = "|".join({*commands_of(), *(word.split()[0] for word in OPTIONAL)})
    lines = {(path.name, line.strip()) for path in FILES for line in lines_of(path, "dnas", names)}
    return sorted(lines)


def test_command_lines_are_found_in_each_file() -> None:
    """Without this test a pattern without matches would pass every test below."""
    files = {name for name, _ in dnas_lines()}
    assert files >= {"cluster.md", "kuberay-job.yaml", "ray-cluster.yaml", "slurm-ray.sh", "slurm-workers.sh"}


@pytest.mark.parametrize(("file", "line"), dnas_lines())
def test_dnas_accepts_every_command_line(file: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Remove variables and arguments that the caller of a script adds.
    text = line.replace('"$@"', "").replace("[options of dnas search]", "").replace("...", "")
    words = shlex.split(re.sub(r"\$\{?\w+\}?", "X", text))[1:]
    known = commands_of()
    if words[0] not in known:
        assert words[0] in OPTIONAL
        return
    unknown = [word for word in words if word.startswith("--") and word not in known[words[0]]._option_string_actions]
    if unknown:
        assert all(f"{words[0]} {word}" in OPTIONAL for word in unknown), f"{words[0]} has no {unknown}"
        return
    try:
        args = parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"{file}: dnas does not accept: {line}")
    if words[0] == "search":
        assert args.space is None or args.space in space_files()
        if args.trials is not None:
            complete(SearchOptions.of(vars(args)))  # checks options that depend on each other


def test_page_has_only_existing_commands() -> None:
    """Check the beginnings of lines in code blocks, which contain no prose."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    words = {word for block in blocks for word in re.findall(r"^dnas ([a-z]\S*)", block, re.MULTILINE)}
    assert words
    assert words <= {*commands_of(), *OPTIONAL}


def ray_lines() -> list[tuple[str, str]]:
    names = "up|down|exec|start|stop|status|rsync-down|rsync-up|submit|get-auth-token"
    lines = {(path.name, line.strip()) for path in FILES for line in lines_of(path, "ray", names)}
    return sorted((file, re.sub(r"\$\{?\w+\}?", "1", line)) for file, line in lines)


@pytest.mark.parametrize(("file", "line"), ray_lines())
def test_ray_accepts_every_command_line(file: str, line: str) -> None:
    words = shlex.split(line.rstrip('"') if line.count('"') % 2 else line)
    command = ray_commands.commands[words[1]]
    command.make_context(words[1], words[2:])  # parses without running it


# --- Ray's launcher -------------------------------------------------------------------------------------------------


def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text()))


def test_ray_accepts_the_cluster_file() -> None:
    config = prepare_config(copy.deepcopy(cluster()))
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "worker"}, "no node types of Ray's defaults remain"


def test_cluster_file_has_everything_that_a_search_needs() -> None:
    config = cluster()
    head, worker = (config["available_node_types"][name] for name in ("head", "worker"))
    assert config["head_node_type"] == "head"
    assert (head["min_workers"], head["max_workers"], head["resources"]["CPU"]) == (0, 0, 0)
    assert worker["min_workers"] == worker["max_workers"] == config["max_workers"], (
        "the autoscaler does not add replicas"
    )
    assert config["docker"]["image"] == f"rayproject/ray:{pinned('ray')}-py311"
    local = {to: source for to, source in config["file_mounts"].items() if not source.startswith("~")}
    assert all((ROOT / source).exists() for source in local.values())
    install = next(line for line in config["setup_commands"] if line.startswith("pip install"))
    (checkout,) = [to for to, source in local.items() if source == "."]
    assert f"-c {checkout}/constraints.txt '{checkout}[s3]'" in install
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start " in line for line in starts)
    assert "--num-cpus=0" in starts[0]
    assert "$RAY_HEAD_IP:6379" in starts[1]
    assert "--port=6379" in starts[0]


# --- KubeRay --------------------------------------------------------------------------------------------------------

# The fields that the job uses, from KubeRay's definition of RayJob v1 (1.5.1 and later) and Kubernetes' pods. A shape
# is a type, a constant, a list with the shape of its items, or a dict with exactly these keys. `?` marks optional keys.
QUANTITIES = {"cpu": str, "memory": str, "nvidia.com/gpu?": str}
CONTAINER = {
    "name": str,
    "image": str,
    "workingDir?": str,
    "env": [{"name": str, "value": str}],
    "ports?": [{"containerPort": int, "name": str}],
    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "spec": {
        "containers": [CONTAINER],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
    }
}
RAY_JOB = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": int,
        "backoffLimit": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "rayStartParams": {},
                    "template": POD,
                }
            ],
        },
    },
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": str},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": str,
        "resources": {"requests": {"storage": str}},
    },
}


def check_shape(value: Any, shape: Any, path: str = "") -> None:
    if isinstance(shape, dict):
        assert isinstance(value, dict), path
        names = {key.rstrip("?") for key in shape}
        needed = {key for key in shape if not key.endswith("?")}
        assert needed <= set(value) <= names, f"{path}: {sorted(set(value) ^ needed)}"
        for key, inner in shape.items():
            if key.rstrip("?") in value:
                check_shape(value[key.rstrip("?")], inner, f"{path}.{key.rstrip('?')}")
    elif isinstance(shape, list):
        assert isinstance(value, list), path
        assert value, path
        for i, item in enumerate(value):
            check_shape(item, shape[0], f"{path}[{i}]")
    elif isinstance(shape, type):
        assert type(value) is shape, f"{path}: {value!r} is not a {shape.__name__}"
    else:
        assert value == shape, f"{path}: {value!r} is not {shape!r}"
        assert type(value) is type(shape), path


def test_ray_job_has_only_documented_fields() -> None:
    claim, job = yaml.safe_load_all((DEPLOY / "kuberay-job.yaml").read_text())
    check_shape(claim, CLAIM, "claim")
    check_shape(job, RAY_JOB, "job")


def test_parts_of_the_ray_job_are_consistent() -> None:
    claim, job = yaml.safe_load_all((DEPLOY / "kuberay-job.yaml").read_text())
    spec = job["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    pods = [spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    (head,), (worker,) = (pod["containers"] for pod in pods)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", job["metadata"]["name"])
    assert spec["rayVersion"] == pinned("ray")
    assert f"FROM rayproject/ray:{pinned('ray')}-py311\n" in (DEPLOY / "Dockerfile").read_text()
    assert head["image"] == worker["image"], "all containers need the same versions of dnas and Ray"
    assert head["image"].endswith(f":{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}")
    for pod in pods:
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = pod["containers"]
        assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"]]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["env"] == head["env"], "all nodes need the same data"
    assert [mount["mountPath"] for mount in head["volumeMounts"]] == [m["mountPath"] for m in worker["volumeMounts"]]
    (mount,) = head["volumeMounts"]
    entry = job["spec"]["entrypoint"]
    assert shlex.split(entry) == entry.split(), "the shell of the submitter parses the entry point"
    assert not set(entry) & set("&|;<>()$`\"'*?\n")
    args = parser().parse_args(entry.split()[1:])
    assert (args.executor, args.ray_address) == ("ray", "auto")
    assert Path(args.shared).is_relative_to(mount["mountPath"])
    assert head["workingDir"] == mount["mountPath"], "otherwise the study is lost with the head"
    assert head["env"][0]["value"].startswith(mount["mountPath"])
    assert "nvidia.com/gpu" in worker["resources"]["limits"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert int(worker["resources"]["limits"]["cpu"]) >= args.cpus_per_trial
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"], "the autoscaler does not add replicas"


def test_image_installs_this_package() -> None:
    lines = (DEPLOY / "Dockerfile").read_text()
    (extra,) = re.findall(r"pip install .*-c /home/ray/dnas/constraints.txt '/home/ray/dnas\[(\w+)\]'", lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert extra in project["project"]["optional-dependencies"]
    assert "deploy" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]


# --- Slurm ----------------------------------------------------------------------------------------------------------

SBATCH = {  # options of sbatch that the scripts use, and patterns of their values
    "job-name": r"=\w+",
    "nodes": r"=\d+",
    "ntasks": r"=\d+",
    "ntasks-per-node": r"=1",
    "cpus-per-task": r"=\d+",
    "gpus": r"=\d+",
    "gpus-per-node": r"=\d+",
    "array": r"=\d+-\d+",
    "time": r"=\d+:\d\d:\d\d",
    "requeue": "",
    "no-kill": "",
    "open-mode": "=append",
    "output": r"=dnas-(%j|%A-%a)\.log",
    "signal": r"=B:INT@\d+",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if (shellcheck := shutil.which("shellcheck")) is not None:
        checked = subprocess.run([shellcheck, "--severity=warning", script], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert options == [line for line in lines[:first] if line.startswith("#SBATCH")], (
        "Slurm ignores options after the first command"
    )
    for line in options:
        name, rest = re.fullmatch(r"#SBATCH --([a-z-]+)(.*)", line).groups()  # type: ignore[union-attr]
        assert re.fullmatch(SBATCH[name], rest), line
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(options)


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Path]:
    """Folder for the stand-ins' log and Ray's files, with a short path because of Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="dn"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def environment(tmp_path: Path, stub: Path, **more: str) -> dict[str, str]:
    path = tmp_path / "bin"
    path.mkdir(exist_ok=True)
    stubs.put(path, fake="STUB_FAKE" in more)
    values = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_", "DNAS_"))}
    overrides = {
        "PATH": f"{path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "STUB": str(stub),
        "HOME": str(tmp_path),
    }
    return values | overrides | {"VENV": str(tmp_path / "none"), "DNAS_CACHE": str(stub / "arrays")} | more


def slurm_ray(tmp_path: Path, stub: Path, nodes: int, *options: str, **more: str) -> tuple[subprocess.Popen[str], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": f"host[1-{nodes}]", "SLURM_JOB_NUM_NODES": str(nodes)}
    overrides = {
        "HEAD_IP": "127.0.0.1",
        "RAY_PORT": str(port),
        "CPUS": "1",
        "GPUS": "0",
        "WAIT_SECONDS": f"{patience(PATIENCE):.0f}",
    }
    quick = {key: value for key, value in QUICK.items() if key != "RAY_AUTH_MODE"}
    process = subprocess.Popen(
        [DEPLOY / "slurm-ray.sh", "--study", "s", *options],
        cwd=tmp_path,
        env=environment(tmp_path, stub, **slurm, **overrides, **quick, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, port


def log_of(stub: Path) -> list[str]:
    return (stub / "log").read_text().splitlines() if (stub / "log").exists() else []


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() - began < patience(PATIENCE)
        time.sleep(0.1)


def is_closed(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_slurm_job_searches_on_all_its_nodes(tmp_path: Path, stub: Path) -> None:
    process, port = slurm_ray(
        tmp_path, stub, 3, "--space", "tiny", "--trials", "2", "--epochs", "1", "--mirror", "none"
    )
    out, _ = process.communicate(timeout=patience(2 * PATIENCE))
    assert process.returncode == 0, out
    assert "3 of 3 nodes have joined" in out
    assert "Ray: 3 runs at once" in out
    assert [record.state for record in StudyFolder(tmp_path / "studies" / "s").records()] == ["complete"] * 2
    assert is_closed(port), "Ray was stopped"
    first, second = (line for line in log_of(stub) if line.startswith("srun "))
    assert "--nodes=1 --ntasks=1 --nodelist=host1 " in first
    assert f" --head --node-ip-address=127.0.0.1 --port={port} " in first
    assert "--nodes=2 --ntasks=2 --exclude=host1 " in second
    assert not any("requeue" in line for line in log_of(stub))
    assert (tmp_path / "shared" / "s").is_dir(), "--shared is set by the script"


def test_slurm_job_at_its_time_limit_is_requeued(tmp_path: Path, stub: Path) -> None:
    """Only the script receives the signal of the time limit, as with `--signal=B:`. Ray and dnas are stand-ins."""
    process, port = slurm_ray(tmp_path, stub, 1, "--trials", "9", STUB_FAKE="1", STUB_SECONDS="60")
    wait_until(lambda: any(line.startswith("dnas ") for line in log_of(stub)), process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 130, out
    search = (
        f"dnas search --study s --trials 9 --executor ray --ray-address 127.0.0.1:{port} --shared {tmp_path}/shared"
    )
    assert search in (line.split(" DNAS_STORAGE=")[0] for line in log_of(stub))
    assert log_of(stub)[-1] == "scontrol requeue 17"
    assert is_closed(port), "Ray was stopped"


def test_cancelled_slurm_job_is_not_requeued(tmp_path: Path, stub: Path) -> None:
    process, port = slurm_ray(tmp_path, stub, 1, STUB_FAKE="1", STUB_SECONDS="60")
    wait_until(lambda: any(line.startswith("dnas ") for line in log_of(stub)), process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 130, out
    assert not any("requeue" in line for line in log_of(stub))
    assert is_closed(port)


def test_slurm_job_without_a_head_ends_at_once(tmp_path: Path, stub: Path) -> None:
    process, _ = slurm_ray(tmp_path, stub, 2, STUB_FAKE="1", STUB_NO_RAY="1")
    out, _ = process.communicate(timeout=patience(PATIENCE / 2))
    assert process.returncode == 1
    assert "Ray's head did not start on host1" in out
    assert not any(line.startswith("dnas ") for line in log_of(stub))


def array(tmp_path: Path, stub: Path, *options: str, mode: int | None = 0o600, **more: str) -> subprocess.Popen[str]:
    file = tmp_path / ".dnas-storage"
    if mode is not None:
        file.write_text("postgresql://me:secret@db/dnas\n")
        file.chmod(mode)
    slurm = {"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3", "STUB_FAKE": "1"}
    return subprocess.Popen(
        [DEPLOY / "slurm-workers.sh", *options],
        cwd=tmp_path,
        env=environment(tmp_path, stub, **slurm, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_array_task_runs_a_worker(tmp_path: Path, stub: Path) -> None:
    process = array(tmp_path, stub, "c", "--space", "cifar_bc", "--trials", "200")
    out, _ = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 0, out
    call = f"dnas worker c --shared {tmp_path}/shared --space cifar_bc --trials 200"
    assert log_of(stub) == [f"{call} DNAS_STORAGE=postgresql://me:secret@db/dnas"], "no password among the arguments"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606])
def test_password_file_that_others_can_read_is_rejected(mode: int, tmp_path: Path, stub: Path) -> None:
    process = array(tmp_path, stub, "c", mode=mode)
    out, _ = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 2
    assert "can be read by others; chmod 600" in out
    assert log_of(stub) == []


def test_array_without_a_password_file_or_study_is_rejected(tmp_path: Path, stub: Path) -> None:
    process = array(tmp_path, stub, "c", mode=None)
    assert "does not exist; create it with one line" in process.communicate(timeout=patience(PATIENCE))[0]
    assert process.returncode == 2
    process = array(tmp_path, stub)
    assert process.communicate(timeout=patience(PATIENCE))[0].startswith("usage: ")
    assert process.returncode == 2
    assert log_of(stub) == []


def test_task_at_its_time_limit_is_requeued(tmp_path: Path, stub: Path) -> None:
    """Only the task is requeued, although the first task has the job ID of its array."""
    process = array(tmp_path, stub, "c", STUB_SECONDS="60")
    wait_until(lambda: log_of(stub), process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 130, out
    assert log_of(stub)[-1] == "scontrol requeue 70_3"


# --- the page -------------------------------------------------------------------------------------------------------


def test_page_and_readme_link_to_each_other() -> None:
    assert "](docs/cluster.md)" in (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert all((PAGE.parent / link).exists() for link in links if "://" not in link)
    assert {link.removeprefix("../deploy/") for link in links} >= {path.name for path in FILES if path.parent == DEPLOY}
