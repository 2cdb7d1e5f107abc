"""The C++ kernels are built at first use, by one process, and never partially."""

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dnas.arch import parse_name
from dnas.errors import InputError
from dnas.machine import COMPILERS
from dnas.nn import DenseNet, resolve_kernels
from dnas.nn.kernels import build
from dnas.nn.kernels.cpu import CPU
from dnas.nn.kernels.reference import REF
from tests.nn.test_dense_block import SEEDS, SHAPES, distance, run_kernels
from tests.support.patience import patience

REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = "densenet-bc:layers=2-1,k=3,size=8"
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here")


@pytest.fixture
def reloaded() -> Iterator[None]:
    """Forget kernels loaded in this process, before and after a test."""
    build.load_library.cache_clear()
    yield
    build.load_library.cache_clear()


@pytest.fixture
def fresh(reloaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of an empty cache. The source in this test is a function that compiles at once."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / build.SOURCE).write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "HERE", tmp_path / "source")
    monkeypatch.setenv("DNAS_KERNELS", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def counting_compiler(folder: Path, first: str = ":") -> tuple[Path, Path]:
    """Return a compiler that appends one line per call to a file and then runs the command `first`, and that file."""
    compiler, calls = folder / "counting-c++", folder / "calls"
    real = next(filter(None, map(shutil.which, COMPILERS)))
    compiler.write_text(
        f'#!/bin/sh\ncase "$1" in --version) ;; *) echo call >> {calls}; {first};; esac\nexec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    return compiler, calls


@needs_compiler
def test_library_is_built_once_and_rebuilt_if_damaged(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, calls = counting_compiler(tmp_path)
    monkeypatch.setenv("CXX", str(compiler))
    command = [*build.compiler(), *build.BASE_FLAGS, *build.processor_flags()]
    path = build.library_in(fresh, command)
    assert build.library_in(fresh, command) == path
    assert calls.read_text().count("call") == 1
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not build.is_intact(path)
    assert build.is_intact(build.library_in(fresh, command))
    path.with_suffix(".sha256").unlink()
    assert build.is_intact(build.library_in(fresh, command))
    assert calls.read_text().count("call") == 3
    assert sorted(p.suffix for p in fresh.iterdir()) == [".lock", ".sha256", ".so"]


def test_library_name_depends_on_compiler_and_flags() -> None:
    names = {build.library_name(["c++", *flags]) for flags in ([], ["-mavx2"], ["-mavx2", "-mavx512f"])}
    assert len(names) == 3


@needs_compiler
def test_only_one_of_two_processes_builds(fresh: Path, tmp_path: Path) -> None:
    """The compiler waits until both processes need the library."""
    started = tmp_path / "started"
    compiler, calls = counting_compiler(tmp_path, f"until [ $(wc -l < {started}) = 2 ]; do sleep 0.1; done; sleep 0.5")

    def build_in_child() -> None:
        with started.open("a") as file:
            file.write("started\n")
        path = build.library_in(fresh, [str(compiler), *build.BASE_FLAGS])
        (tmp_path / f"path-{os.getpid()}").write_text(str(path))

    both = [multiprocessing.get_context("fork").Process(target=build_in_child) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(patience(120))
    assert [process.exitcode for process in both] == [0, 0]
    paths = [(tmp_path / f"path-{process.pid}").read_text() for process in both]
    assert paths[0] == paths[1]
    assert Path(paths[0]).is_file()
    assert calls.read_text().count("call") == 1


def test_vector_flags_of_processor_features() -> None:
    assert build.vector_flags({"sse2", "avx", "fma"}) == []
    assert build.vector_flags({"avx2", "fma"}) == ["-mavx2", "-mfma"]
    assert build.vector_flags({"avx2", "fma", "avx512f"}) == ["-mavx2", "-mfma"]
    every = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert set(build.vector_flags(every)) == {f"-m{feature}" for feature in every}


def test_missing_compiler_is_reported(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(fresh))
    with pytest.raises(InputError, match=r"plain, ref, (triton, )?auto, but not cpu: there is no C\+\+ compiler"):
        DenseNet(parse_name(SPEC), kernels="cpu")
    with caplog.at_level(logging.WARNING):
        assert resolve_kernels("auto", parse_name(SPEC), "cpu", 4) == "plain"
    assert len(caplog.records) == 1
    assert "there is no C++ compiler here" in caplog.text


def test_failing_compiler_is_reported(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: vectors are out of stock' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match=r"but not cpu: the compiler .*broken-c"):
        DenseNet(parse_name(SPEC), kernels="cpu")
    assert "vectors are out of stock" in caplog.text
    assert resolve_kernels("auto", parse_name(SPEC), "cpu", 4) == "plain"
    assert not list(fresh.glob("*.so*[0-9]")), "no partial library remains"


@needs_compiler
def test_unwritable_cache_is_replaced_by_a_temporary_folder(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fresh.write_text("a file, where the folder should be")  # root can write to read-only folders
    path = build.library_in(fresh, [*build.compiler(), *build.BASE_FLAGS])
    assert path.is_file()
    assert path.parent.name.startswith("dnas-kernels-")


def sanitizers() -> list[str]:
    """Return the runtime libraries of gcc's sanitizers; empty if they are not installed."""
    if not shutil.which("g++"):
        return []
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return libraries if all(Path(path).is_absolute() for path in libraries) else []


SANITIZED = """
import torch
from dnas.nn.kernels import build
build.BASE_FLAGS = ["-O1" if flag == "-O3" else flag for flag in build.BASE_FLAGS]
from tests.nn.test_dense_block import CPU, SHAPES, run_kernels
torch.set_num_threads(2)
for number in range(len(SHAPES)):
    run_kernels(CPU, number, torch.float32, number % 2 == 0, 3)
print("clean")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sanitizers(), reason="gcc's sanitizers are not installed")
def test_kernels_are_clean_under_sanitizers(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "DNAS_KERNELS": str(tmp_path),
        "CXX": "g++ -fsanitize=address,undefined -fno-sanitize-recover=undefined -g",
        "LD_PRELOAD": " ".join(sanitizers()),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=patience(300),
    )
    assert done.stdout.strip() == "clean", done.stderr[-3000:]


@needs_compiler
@pytest.mark.parametrize("flags", [[], ["-mavx2", "-mfma"]])
def test_code_for_other_processors_equals_the_reference(
    reloaded: None, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    """The unoptimised library is stored in the user's cache, since its compilation takes seconds."""
    if not set(flags) <= set(build.processor_flags()):
        pytest.skip("this processor cannot run it")
    monkeypatch.setattr(build, "processor_flags", lambda: flags)
    monkeypatch.setattr(build, "BASE_FLAGS", ["-O0" if flag == "-O3" else flag for flag in build.BASE_FLAGS])
    for number in range(len(SHAPES)):
        truths = (run_kernels(REF, number, torch.float64, False, seed) for seed in SEEDS)
        results = (run_kernels(CPU, number, torch.float32, False, seed) for seed in SEEDS)
        assert any(distance(result, truth) < 2e-5 for result, truth in zip(results, truths, strict=True))


def built_driver(folder: Path, compiler: str, *flags: str) -> Path:
    """Compile tests/support/run_blocks.cpp to a program."""
    program = folder / "run_blocks"
    base = [flag for flag in build.BASE_FLAGS if flag not in ("-shared", "-fPIC", "-O3")]
    source = REPOSITORY / "tests" / "support" / "run_blocks.cpp"
    subprocess.run([compiler, *base, *flags, f"-I{build.HERE}", str(source), "-o", str(program)], check=True)
    return program


def printed(*command: str | Path) -> list[tuple[str, torch.Tensor]]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(300))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(name, torch.tensor([float(value) for value in values])) for name, *values in rows]


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
def test_kernels_are_clean_under_valgrind(tmp_path: Path) -> None:
    """Uses AVX2 at most, because valgrind does not support longer vectors."""
    flags = [flag for flag in build.processor_flags() if flag in ("-mavx2", "-mfma")]
    program = built_driver(tmp_path, build.compiler()[0], "-g", "-O1", *flags)
    assert len(printed("valgrind", "--quiet", "--error-exitcode=9", program)) == 156


ARM = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ARM)), reason=f"{' and '.join(ARM)} are not installed")
def test_arm_code_equals_native_code(tmp_path: Path) -> None:
    compiler, emulator = ARM
    program = built_driver(tmp_path, compiler, "-O2", "-static")
    emulated = printed(emulator, program)
    native = printed(built_driver(tmp_path, build.compiler()[0], "-O2", *build.processor_flags()))
    assert len(native) == 156
    for (name, values), (_, others) in zip(native, emulated, strict=True):
        assert (values - others).abs().max() <= 1e-3 * values.abs().max(), name
