#!/usr/bin/env bash
# Everything a GPU call measures, in one command that fits nine minutes:
#
#   on a GPU:   bash bench/gpu/run.sh          rows go to $OUT
#   elsewhere:  bash bench/gpu/run.sh --dry    the control flow at tiny sizes, in Triton's interpreter
#
# PYTHON is the interpreter; without it .venv's, or python3 where there is no .venv.
#
# Correctness first; a wrong kernel ends the run before a time is taken. The machine has torch, Triton and numpy but not
# this package: it is imported from the tree, through rgalign's links, and its C++ part is built if there is a compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-build/gpu}
mkdir -p "$out"
venv=.venv/bin/python
[[ -x $venv ]] || venv=python3
python=${PYTHON:-$venv}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
if [[ ${1:-} == --dry ]]; then
  export TRITON_INTERPRET=1
  timeout 300 "$python" -m rgalign.bench.gpu.scoring --dry --out "$out"
  exit
fi
{ nvidia-smi; "$python" -c 'import torch, triton; print(torch.__version__, triton.__version__)'; } | tee "$out/machine.txt"
timeout 90 "$python" -m rgalign.bench.gpu.compile_only --arch "${ARCH:-90}" --index float16 int8 | tee "$out/binaries.jsonl"
timeout 420 "$python" -m rgalign.bench.gpu.scoring --seconds 380 --out "$out" 2>&1 | tee "$out/scoring.log"
