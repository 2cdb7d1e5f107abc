"""Facts about a machine that are known without torch: it must never be refused a device that it has."""

from pathlib import Path

import pytest

from dnas.errors import InputError
from dnas.machine import cuda_devices, missing_for_kernels
from dnas.training.defaults import check_device_here, check_kernels_name

ABSENT, PRESENT = "libno-such-driver.so.1", "libc.so.6"  # stand for NVIDIA's driver
GPUS = [f"proc/driver/nvidia/gpus/0000:0{n}:00.0/information" for n in range(2)]
NODES = ["dev/nvidiactl", "dev/nvidia0", "dev/nvidia1", "dev/nvidia-caps/nvidia-cap1"]


def system(root: Path, files: list[str]) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.fixture(autouse=True)
def _linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "CXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("files", "driver", "devices"),
    [
        (["dev/null", "proc/driver/rtc"], ABSENT, 0),
        ([], PRESENT, None),  # the driver can still create its files
        ([*GPUS, *NODES], PRESENT, 2),
        ([*GPUS, "dev/nvidia0"], ABSENT, 2),
        ([*GPUS[:1], *NODES], ABSENT, 2),
        (NODES, PRESENT, None),  # a container may lack /proc/driver, and files of further GPUs may appear later
        ([*GPUS, *NODES, "proc/driver/nvidia/capabilities/gpu0/mig/gi1/access"], PRESENT, None),
        (["dev/dxg"], ABSENT, None),  # Windows Subsystem for Linux
        ([*GPUS, "dev/nvmap"], PRESENT, None),  # Jetson
        (["dev/nvhost-gpu"], ABSENT, None),
        (["dev/kfd"], ABSENT, None),  # AMD, whose devices torch calls cuda
    ],
)
def test_number_of_cuda_devices_is_stated_only_if_certain(
    tmp_path: Path, files: list[str], driver: str, devices: int | None
) -> None:
    assert cuda_devices(system(tmp_path, files), driver) == devices


def test_torch_counts_the_devices_that_a_variable_selects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert cuda_devices(system(tmp_path, [*GPUS, *NODES]), PRESENT) is None


def test_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert cuda_devices(tmp_path, PRESENT) == 0
    monkeypatch.setattr("sys.platform", "win32")
    assert cuda_devices(tmp_path, ABSENT) is None


@pytest.mark.parametrize(
    ("devices", "name", "message"),
    [
        (0, "cuda", "--device cuda: this machine has no CUDA device; use --device cpu."),
        (2, "cuda:2", "--device cuda:2: this machine has cuda:0 to cuda:1."),
        (1, "cuda:9", "--device cuda:9: this machine has cuda:0 only."),
        (2, "cuda:1", None),
        (2, "cuda", None),
        (None, "cuda:9", None),
        (0, "auto", None),
        (0, "cpu", None),
    ],
)
def test_devices_are_refused_without_torch_if_certain(
    devices: int | None, name: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnas.training.defaults.cuda_devices", lambda: devices)
    if message is None:
        assert check_device_here(name) == name
        return
    with pytest.raises(InputError) as refusal:
        check_device_here(name)
    assert str(refusal.value) == message


def test_kernels_are_refused_without_torch_if_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.machine.cuda_devices", lambda: 0)
    monkeypatch.setattr("dnas.machine.find_spec", lambda name: object())
    with pytest.raises(InputError, match="cannot run the kernels triton: there is no CUDA device; use --kernels auto"):
        check_kernels_name("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert missing_for_kernels("triton") is None
    monkeypatch.setattr("dnas.machine.find_spec", lambda name: None)
    assert "package triton is not installed" in (missing_for_kernels("triton") or "")
    monkeypatch.setenv("CXX", "ccache g++-99")
    with pytest.raises(InputError, match=r"cannot run the kernels cpu: there is no C\+\+ compiler here"):
        check_kernels_name("cpu")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "c++" in (missing_for_kernels("cpu") or "")
    assert [missing_for_kernels(name) for name in ("plain", "ref", "auto")] == [None] * 3
