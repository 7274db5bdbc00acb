#!/usr/bin/env bash
# What CI cannot run, on a machine with a GPU: `bash bench/gpu.sh OUT PART...`, pages and logs into OUT.
#
#   tests         every test of kernels and of tests/gpu, in WORKERS processes (default 8)
#   contract      rnn-lab check MODEL --device cuda, for the models in MODELS (default: all), in WORKERS processes
#   golden        the golden cases in the folders of GOLDEN, in fp32 and bf16, in WORKERS processes for each
#   length        time per token from T 512 to 32K at B 4
#   matrix        E74 and E88 beside FLA, the captured loop and the plain one, in one run
#   linear        Gated DeltaNet and Mamba2 beside FLA and mamba-ssm
#   tanh          ways to compute tanh
#   dense         dense recurrences beside the captured loop and cuDNN: kernels, tests first
#   cells         whole dense cells beside cuDNN, FlashRNN and the captured loop
#   races         small dense recurrences under compute-sanitizer
#   waves         whole steps of E1 and E5 with layers on several chunks of time at once, and without
#   optimizers    share of Muon's update in a step of 100M parameters, 32 and 256 sequences
#   series        six models at 100M for MINUTES each (default 0.75), on DATA and VAL_DATA if they are set
#   backward      products over kept positions, then a whole backward with and without Collider
#   e3            the E3 suite, MINUTES (default 1) a run, on DATA and VAL_DATA if they are set
#   scale         one run on one GPU and on two
#
# Every part may take LIMIT seconds (default 600) and leaves what it has when it is cut off.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
shift
LIMIT=${LIMIT:-600}
PYTHON=${PYTHON:-python3}
LAB="$PYTHON -m rnn_lab_cli"
E74=e74:dim=640,n_state=32,nonlinearity=tanh
E88=e88:dim=1024,n_heads=32,n_state=32
GDN=gdn:dim=2048,n_heads=32,head_dim=64,expansion=1.0

limited() { timeout -k 10 "$LIMIT" "$@"; }
kernels() { limited $LAB bench kernels --seconds 0.2 --out "$OUT/$1.json" "${@:2}" > "$OUT/$1.txt" 2>&1; }
tests() {
  OMP_NUM_THREADS=1 limited "$PYTHON" -m pytest -q -p no:benchmark -p no:cacheprovider -n "${WORKERS:-8}" \
    --dist worksteal -rf "$@" 2>&1 | tee "$OUT/tests.txt" | tail -40
}
data() { [ -n "${DATA:-}" ] && printf '%s\n' --data "$DATA" --val-data "$VAL_DATA"; }

for part in "$@"; do
  begun=$SECONDS
  case $part in
    tests) tests tests/kernels tests/gpu ;;
    contract)
      export OUT LAB LIMIT && export -f limited
      printf '%s\n' ${MODELS:-$($LAB list-models --json | "$PYTHON" -c 'import json, sys
print(*[row["name"] for row in json.load(sys.stdin)])')} | OMP_NUM_THREADS=1 xargs -P "${WORKERS:-8}" -I{} bash -c '
        limited $LAB check {} --device cuda > "$OUT/check-{}.txt" 2>&1 && echo "{} passed" || echo "{} FAILED"' ;;
    golden)
      N=${WORKERS:-8}
      for dtype in fp32 bf16; do
        for ((i = 0; i < N; i++)); do
          OMP_NUM_THREADS=1 limited "$PYTHON" tests/golden/run.py $GOLDEN --part $i/$N --device cuda --dtype $dtype \
            > "$OUT/golden-$dtype-$i.txt" 2>&1 &
        done
      done
      wait
      tail -qn 1 "$OUT"/golden-*.txt
      grep -h FAIL "$OUT"/golden-*.txt ;;
    length)
      for T in 512 2048 8192 32768; do
        kernels "h100-kernels-t$T" --op recurrence --implementation diagonal --implementation matrix --batch 4 \
          --seq-len $T --model e61:dim=640,expansion=2 --model e68:dim=640,expansion=2 --model $E74 --model $E88
      done ;;
    matrix) kernels h100-kernels-matrix-peers --op recurrence --model $E88 --model $E74 ;;
    linear) kernels h100-kernels-linear-peers --op gated_delta_rule --op ssd --model $GDN --model mamba2:dim=672,n_state=64 ;;
    tanh) limited "$PYTHON" bench/tanh.py --json "$OUT/h100-tanh.json" ;;
    dense)
      tests tests/gpu/test_dense.py -x
      limited "$PYTHON" bench/dense.py 2>&1 | tee "$OUT/dense.txt"
      limited "$PYTHON" bench/dense.py --every-plan --widths 1024 2>&1 | tee "$OUT/dense-plans.txt"
      limited "$PYTHON" bench/dense.py --together --widths 1024 --batches 32 2>&1 | tee "$OUT/dense-together.txt" ;;
    races)
      limited compute-sanitizer --tool racecheck "$PYTHON" bench/races.py > "$OUT/racecheck.txt" 2>&1
      limited compute-sanitizer --tool memcheck --report-api-errors no "$PYTHON" bench/races.py > "$OUT/memcheck.txt" 2>&1
      tail -n 2 "$OUT/racecheck.txt" "$OUT/memcheck.txt" ;;
    cells)
      rows=(--op recurrence)
      for implementation in dense graph 'plain*' 'cuDNN*' floor; do rows+=(--implementation "$implementation"); done
      wide="--model e1:dim=1024,expansion=1 --model lstm:dim=1024,expansion=1 --model gru:dim=1024,expansion=1"
      kernels h100-kernels-dense-1024 "${rows[@]}" --implementation 'FlashRNN*' $wide
      kernels h100-kernels-dense-b256 "${rows[@]}" --batch 256 --model e1:dim=1024,expansion=1 --model e1:dim=768,expansion=1
      kernels h100-kernels-dense "${rows[@]}" --model e1:dim=768,expansion=1 --model e1:dim=1280,expansion=1 \
        --model e1:dim=1536,expansion=1 --model gru:dim=512,expansion=1 --model lstm:dim=512,expansion=1 ;;
    waves)
      for N in 1 3 4 6; do
        limited $LAB bench train --preset seed000/e1_50m --preset seed004/e1 --preset seed000/e5_d1536_r270 --graph on \
          --steps 10 --wavefront $N --out "$OUT/h100-train-dense-waves-$N.json" > "$OUT/waves-$N.txt" 2>&1
      done
      for N in 1 3; do
        limited $LAB bench train --preset seed000/e1_50m --batch-size 256 --graph on --steps 10 --wavefront $N \
          --out "$OUT/h100-train-dense-b256-waves-$N.json" > "$OUT/waves-b256-$N.txt" 2>&1
      done ;;
    optimizers)
      limited "$PYTHON" bench/symmetric.py --json "$OUT/h100-symmetric.json" 2>&1 | tee "$OUT/symmetric.txt"
      for B in 32 256; do
        for optimizer in muon muon8bit; do
          limited $LAB bench train --model e61 --model e1 --target 100M --batch-size $B --graph on --steps 8 \
            --optimizer $optimizer --out "$OUT/h100-train-$optimizer-b$B.json" > "$OUT/$optimizer-b$B.txt" 2>&1
        done
      done ;;
    series)
      mapfile -t given < <(data)
      limited $LAB protocol run bench-100m-10min --models "e61,e68,e74 n=32,llama,mamba2,e1" \
        --minutes "${MINUTES:-0.75}" "${given[@]}" --out "$OUT/series" $([ -d "$OUT/series" ] && echo --resume)
      $LAB report "$OUT/series" ;;
    backward)
      limited "$PYTHON" bench/filtered.py --json "$OUT/h100-filtered.json" 2>&1 | tee "$OUT/filtered.txt"
      for D in 1024 2048 4096; do
        limited $LAB bench backward --model e61 --dim $D --json > "$OUT/h100-backward-$D.json"
      done ;;
    e3)
      mapfile -t given < <(data)
      limited $LAB bench e3 --model e61 --target 50M --minutes "${MINUTES:-1}" --seeds 2 "${given[@]}" \
        --out "$OUT/e3" $([ -d "$OUT/e3" ] && echo --resume) ;;
    scale) limited "$PYTHON" bench/scale.py --json "$OUT/h100-scale.json" ;;
    *) echo "no part '$part': see the head of $0" >&2 && exit 2 ;;
  esac
  echo "== $part: $((SECONDS - begun)) s"
done
