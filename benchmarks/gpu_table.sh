#!/bin/bash
# Every cell of docs/engine-gpu.md's table on one machine, in parts that end within ten minutes each:
#
#   benchmarks/gpu_table.sh ours /tmp/t             # our engine, up to 2,048 new tokens (about 300 s on an H100)
#   benchmarks/gpu_table.sh long /tmp/t             # our engine, 4,096 new tokens (155 s)
#   benchmarks/gpu_table.sh vllm /tmp/t llama-1b    # vLLM's teacher (160 to 300 s); pure-1b, hybrid-1b; llama-3b
#   benchmarks/gpu_table.sh prototype /tmp/t        # the 100-line prototype's steps
#   benchmarks/gpu_table.sh fp8 /tmp/t              # our engine, weights in eight bits (65 s)
#   benchmarks/gpu_table.sh shapes /tmp/t           # 3B shapes and other d_state: results/gpu-shapes.json (200 s); then
#                                                   # gpu_engine.py --out there --vllm takes llama-3b's lines in
#   benchmarks/gpu_table.sh merge /tmp/t results/gpu-engine.json   # needs no GPU; parts may lie in folders of their own,
#                                                   # what vLLM came to in other leases in elsewhere*.jsonl,
#                                                   # each line with the commit of ours that ran beside it: "lease"
#
# TOOLS: the folder of vllm_bench.py and decode_step_prototype.py; VLLM: where vLLM is installed (pack_vllm.py).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tools=${TOOLS:-$here/../../shared/tools}
part=${1:?ours, long, fp8, vllm, prototype, shapes or merge} out=${2:?a folder for the results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$here/../src PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
M=llama-3.2-1b
engine() { python3 "$here/gpu_engine.py" "$@"; }
case $part in
ours)
  # The first cell compiles; it runs again.
  engine --out "$out/ours.json" --models $M $M/pure-d16 $M/pure-d64 \
    --cells 8,128,512 1,128,512 8,128,512 64,128,512 256,128,1024 512,128,512 512,256,2048 1024,128,512
  engine --out "$out/ours.json" --models $M/hybrid2-d16 $M/hybrid2-d64 $M/hybrid4-d16 $M/hybrid4-d64 \
    --cells 1,128,512 8,128,512 64,128,512 256,128,1024 512,128,512 512,256,2048 ;;
long)
  engine --out "$out/ours.json" --models $M $M/pure-d16 $M/pure-d64 $M/hybrid2-d16 $M/hybrid4-d16 --cells 512,256,4096 ;;
fp8)
  engine --fp8 --out "$out/ours.json" --models $M/pure-d16 $M/pure-d64 $M --cells 8,128,512 512,128,512 512,256,2048 ;;
vllm)
  cells="512,128,512 256,128,1024 512,256,2048"
  [ "${3:?llama-1b, pure-1b, hybrid-1b or llama-3b}" = llama-1b ] && cells="1,128,512 8,128,512 64,128,512 $cells 512,256,4096"
  [ "$3" = llama-3b ] && cells="64,128,512 256,128,1024 512,256,1024"
  # shellcheck disable=SC2086
  PYTHONPATH=${VLLM:-/tmp/vl} python3 "$tools/vllm_bench.py" "$3" $cells 2> "$out/$3.err" | tee -a "$out/vllm.jsonl" ;;
prototype)
  cd "$tools" && python3 decode_step_prototype.py | tee "$out/prototype.txt" ;;
shapes)
  L=llama-3.2-3b
  engine --out "$out/gpu-shapes.json" --models $L $L/hybrid6-d16 $L/pure-d16 \
    --cells 64,128,512 256,128,1024 512,256,1024
  engine --out "$out/gpu-shapes.json" --models $L/hybrid6-d128 $L/pure-d128 --cells 64,128,512 256,128,1024
  engine --out "$out/gpu-shapes.json" --models $M/pure-d32 $M/pure-d128 --cells 512,128,512 ;;
merge)
  mapfile -t ours < <(find "$out" -name ours.json | sort)
  mapfile -t vllm < <(find "$out" -name vllm.jsonl | sort)
  mapfile -t elsewhere < <(find "$out" -name 'elsewhere*.jsonl' | sort)
  rm -f "${3:?where to write}"
  engine --out "$3" --ours "${ours[@]}" --vllm "${vllm[@]}" ${elsewhere:+--elsewhere "${elsewhere[@]}"} \
    --prototype "$(find "$out" -name prototype.txt | sort | tail -n 1)" ;;
*)
  echo "unknown part $part: ours, long, fp8, vllm, prototype, shapes or merge" >&2
  exit 2 ;;
esac
