"""The Triton kernels equal `ref` in Triton's interpreter (on the CPU, in float32), and compile for GPUs.

Tests on a GPU run on machines that have one.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from dnas.arch import parse_name
from dnas.errors import InputError
from dnas.nn.kernels import check_kernels
from dnas.nn.kernels.reference import BlockShape
from dnas.nn.kernels.triton_block import PIXELS, TRITON
from tests.nn.test_dense_block import images, nets, step
from tests.support.interpreted import CASES, errors, run, weights_of
from tests.training.test_step import Synchronisations

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
SHARED_BYTES = 99 * 1024  # shared memory per program that every GPU since 2020 has


# The kernels are interpreted in a separate process, once instead of by each worker of the test suite.
pytestmark = pytest.mark.xdist_group("triton")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.interpreted"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("case", [*CASES, "network"])
def test_interpreted_kernels_equal_the_reference(interpreted: dict[str, Any], case: str) -> None:
    assert {name: error for name, error in interpreted[case].items() if not error <= 1e-5} == {}


@pytest.mark.slow
@needs_triton
def test_variance_of_maps_with_a_large_mean(interpreted: dict[str, Any]) -> None:
    """float32 stores a number near 1000 to 3e-5, so differences of squares could not resolve a variance near 1."""
    assert interpreted["far from zero"]["mean"] < 1e-6
    assert interpreted["far from zero"]["variance"] < 1e-4


class _Compiled:
    """Replaces a kernel, and compiles it at launch for a GPU that need not exist."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.made = kernel, dict[str, Any]()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *arguments: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        given = dict(zip(self.kernel.arg_names, arguments, strict=False))
        assert [*given, *constants] == self.kernel.arg_names
        signature = {
            name: f"*{_TYPES[argument.dtype]}" if isinstance(argument, torch.Tensor) else _TYPES[type(argument)]
            for name, argument in given.items()
        }
        # As in a launch, an integer argument equal to 1 is compiled in.
        constants |= {name: 1 for name, argument in given.items() if isinstance(argument, int) and argument == 1}
        signature |= dict.fromkeys(constants, "constexpr")
        key = repr((signature, constants))
        if key not in self.made:
            self.made[key] = triton.compile(
                ASTSource(self.kernel, signature, constants),
                target=GPUTarget("cuda", 90, 32),
                options={"num_warps": num_warps, "num_stages": num_stages},
            )


_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.uint8: "u8",
    int: "i32",
    float: "fp32",
}


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
def test_kernels_compile_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched in bfloat16 for a layer with a bottleneck of 128; products use tensor cores."""
    from dnas.nn.kernels import triton_kernels

    names = [name for name in vars(triton_kernels) if not name.startswith("_") and name not in ("triton", "tl")]
    kernels = {name: _Compiled(getattr(triton_kernels, name)) for name in names}
    for name, kernel in kernels.items():
        monkeypatch.setattr(triton_kernels, name, kernel)
    shape = BlockShape((64, 32), ((0,), (0, 1)), (128,), "pool", 0.2, 1e-5)
    x, weights = torch.randn(1, 64, 16, 16, dtype=torch.bfloat16), [weight.bfloat16() for weight in weights_of(shape)]
    masks = [torch.ones(1, outs, 16, 16, dtype=torch.bool) for outs in (128, 32)]
    output, statistics, kept = TRITON.forward(shape, x, weights, masks, False)
    TRITON.backward(shape, x, weights, masks, statistics, kept, output)
    with Synchronisations() as recorded:  # by the second call its tables are there
        output, statistics, kept = TRITON.forward(shape, x, weights, masks, False)
        TRITON.backward(shape, x, weights, masks, statistics, kept, output)
    assert recorded.calls == [], "what waits for the device cannot be captured in a CUDA graph"
    for name, kernel in kernels.items():
        assert kernel.made, f"{name} is not launched"
        for compiled in kernel.made.values():
            assert compiled.metadata.shared <= SHARED_BYTES, name
            if name.startswith("convolve"):
                assert "mma" in compiled.asm["ptx"], name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_triton_is_refused_without_a_device() -> None:
    with pytest.raises(InputError, match=r"this machine runs the kernels plain, .*but not triton: .+\.$"):
        check_kernels("triton")
    shape = BlockShape((2, 1), ((0,), (0, 1)), (0,), "pool", 0.0, 1e-5)
    assert "not torch.float32 on cpu" in TRITON.unsupported_reason(torch.randn(1, 2, 4, 4), weights_of(shape))


@pytest.mark.slow
@needs_triton
def test_unsupported_types_are_refused(interpreted: dict[str, Any]) -> None:
    float32, float64 = interpreted["why not"]
    assert float32 == ""
    assert float64.startswith("kernels `triton` support float32 and bfloat16 on CUDA, but not torch.float64")


@pytest.mark.slow
@needs_triton
def test_triton_supports_autocast(interpreted: dict[str, Any]) -> None:
    """Runs on a GPU use autocast: maps are bfloat16 and weights float32."""
    assert interpreted["under autocast"] == ["", "autocast", "autocast"]


@pytest.mark.slow
@needs_triton
def test_triton_is_not_imported_before_it_is_used(interpreted: dict[str, Any]) -> None:
    assert interpreted["imported early"] is False


# --- on a GPU --------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_kernels_on_a_gpu_equal_the_reference(case: str) -> None:
    """bfloat16 has 8 significant bits; a float32 product has an error of 1e-6."""
    from dnas.nn.kernels.dispatch import drawn_masks
    from dnas.nn.kernels.reference import REF

    shape, (batch, height, width), recompute = CASES[case]
    torch.manual_seed(0)
    x, weights = torch.randn(batch, shape.sources[0], height, width), weights_of(shape)
    masks = list(drawn_masks(shape, x, weights)) if shape.dropout else []
    truth = run(REF, shape, x.double(), [weight.double() for weight in weights], masks, recompute)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        there = [weight.to("cuda", dtype) for weight in weights], [mask.cuda() for mask in masks]
        results = run(TRITON, shape, x.to("cuda", dtype), *there, recompute)
        again = run(TRITON, shape, x.to("cuda", dtype), *there, recompute)
        assert all(torch.equal(results[name], again[name]) for name in results)
        results = {name: tensor.cpu() for name, tensor in results.items()}
        assert {name: error for name, error in errors(results, truth).items() if not error <= tolerance} == {}


@needs_gpu
@pytest.mark.parametrize("mixed", [False, True])
def test_training_step_on_a_gpu_equals_the_plain_modules(mixed: bool) -> None:
    spec = parse_name("densenet-bc:layers=3-2,k=5,size=9,dropout=0.1")
    plain, fast = (net.cuda() for net in nets(spec, "triton", torch.float32))
    x, y = (tensor.cuda() for tensor in images(spec, 2 * PIXELS // 81 + 2, torch.float32))
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        results, truth = (step(net, x, y) for net in (fast, plain))
    del results["stream"], truth["stream"]
    wrong = errors({k: v.cpu() for k, v in results.items()}, {k: v.cpu() for k, v in truth.items()})
    assert {name: error for name, error in wrong.items() if not error <= (0.2 if mixed else 1e-2)} == {}
