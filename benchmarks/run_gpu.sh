#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes and without a network: the tests marked `gpu`, a part of them under
# compute-sanitizer where that is installed, and the benchmark. Options are those of cuda_engine.py.
# PYTHON names the interpreter; RESULTS the folder of what is written, benchmarks/results by default.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python}
RESULTS=${RESULTS:-benchmarks/results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not (torch.version.cuda and torch.cuda.is_available()))'; then
    echo "run_gpu.sh: needs an NVIDIA GPU and a CUDA build of torch; torch finds none. Nothing was run." >&2
    exit 2
fi
"$PYTHON" -c 'import torch; p = torch.cuda.get_device_properties(0); print(p.name, f"sm_{p.major}{p.minor}", "torch", torch.__version__)'
mkdir -p "$RESULTS"
failed=()
step() {  # name, seconds at most, command
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "== $name"
    timeout "$limit" "$@" || failed+=("$name (exit code $?)")
    echo "== $name: $((SECONDS - start)) s"
}

ARCH=$("$PYTHON" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())')
step "compile every kernel" 120 "$PYTHON" -m pointlib.ops.precompile --arch "$ARCH"
step "tests marked gpu" 180 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests
if command -v compute-sanitizer >/dev/null; then
    # Memory of its own for each tensor, so that reading beyond one is seen.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck; do
        step "compute-sanitizer $tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
            "$PYTHON" -m pytest -q -x -m gpu -p no:cacheprovider tests/ops/test_cuda_device.py \
            -k "submanifold or convolution_and_its_gradients"
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    echo "== compute-sanitizer: not installed, left out (it comes with the CUDA toolkit)"
fi
step "benchmark" 180 "$PYTHON" benchmarks/cuda_engine.py --output "$RESULTS/cuda_engine.json" "$@"
step "BEVFusion" 150 "$PYTHON" benchmarks/bevfusion.py --device cuda --output "$RESULTS/bevfusion_cuda.json"

if ((${#failed[@]})); then
    printf 'run_gpu.sh: failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "run_gpu.sh: all passed in $SECONDS s"
