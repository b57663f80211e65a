#!/usr/bin/env bash
# Everything that is measured on a GPU, in one command of at most nine minutes:
#
#   on a GPU:   bash bench/gpu/run.sh          rows, logs and the tuned tiles go to $OUT
#   elsewhere:  bash bench/gpu/run.sh --dry    all of it at tiny sizes, in Triton's interpreter
#
# PYTHON is the interpreter; without it .venv's, or python3 where there is no .venv. SECONDS_ALL is the time there is.
#
# Needs torch, Triton and NumPy; the package is imported from the tree. The C++ part is built if it is missing and there
# are cmake, pybind11 and a compiler; without it the batcher, and so end_to_end, is left out.
#
# check comes first, and if it fails nothing is timed. The steps after it are in the order of their worth: each gets its
# share of the time or what is left of it, is told when to begin nothing more, and is cut off soon after. The table is last.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-build/gpu}
mkdir -p "$out"
rm -f "$out"/{engine,kernels,end_to_end,scoring}.jsonl "$out/int8_gemm_tiles.json"
venv=.venv/bin/python
[[ -x $venv ]] || venv=python3
python=${PYTHON:-$venv}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
dry=()
all=${SECONDS_ALL:-530}
if [[ ${1:-} == --dry ]]; then
  dry=(--dry)
  export TRITON_INTERPRET=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  all=${SECONDS_ALL:-290}
fi
least=15 # seconds that a step is begun with
failed=()

# step NAME SECONDS GRACE [ARGUMENT ...]: a module that begins nothing after SECONDS and has GRACE to finish.
# Its status; 124 where there was no time for it.
step() {
  local name=$1 seconds=$2 grace=$3 left=$((all - SECONDS)) status=0
  shift 3
  ((seconds + grace <= left)) || seconds=$((left - grace))
  if ((seconds < least)); then
    echo "== $name: left out, $left s are left"
    failed+=("$name: left out")
    return 124
  fi
  echo "== $name: $seconds s"
  [[ $name == check ]] || set -- --out "$out" --seconds "$seconds" "$@"
  timeout $((seconds + grace)) "$python" -m "rgalign.bench.gpu.$name" "$@" "${dry[@]}" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  ((status == 0)) || failed+=("$name: status $status")
  return "$status"
}

build() {
  local cmake_dir
  cmake_dir=$("$python" -m pybind11 --cmakedir) || return 1
  cmake -S . -B "$out/build" -DCMAKE_BUILD_TYPE=Release -DRGALIGN_TESTS=OFF -Dpybind11_DIR="$cmake_dir" \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/rgalign" && cmake --build "$out/build" --parallel 8
}

{
  if command -v nvidia-smi; then nvidia-smi; fi
  "$python" -c 'import platform, numpy, torch, triton
print("python", platform.python_version(), "torch", torch.__version__, "triton", triton.__version__, "numpy", numpy.__version__)'
} | tee "$out/machine.txt"
building=
if ! "$python" -c 'import rgalign._C' 2>"$out/build.log"; then
  timeout 200 bash -c "$(declare -f build); python='$python' out='$out'; build" >"$out/build.log" 2>&1 &
  building=$!
fi
if ! step check 90 60; then
  echo "not checked, or wrong: nothing is timed"
  exit 1
fi
tiles=()
step tune 50 30
[[ ! -s $out/int8_gemm_tiles.json ]] || tiles=(--tiles "$out/int8_gemm_tiles.json")
step engine 110 50 "${tiles[@]}"
if [[ -z $building ]] || wait "$building"; then
  step end_to_end 90 40 "${tiles[@]}"
else
  failed+=("end_to_end: no C++ part, see $out/build.log")
fi
step engine_kernels 25 20 "${tiles[@]}"
step scoring 90 20
echo "== $SECONDS s"
"$python" -m rgalign.bench.gpu.table "$out" | tee "$out/table.txt"
if ((${#failed[@]})); then
  printf 'not whole: %s\n' "${failed[@]}"
  exit 1
fi
