#!/usr/bin/env bash
# Measure ptune on a GPU: benchmarks/gpu.sh [OUTPUT.jsonl] [OPTIONS OF gpu.py]
# Rehearse it on a CPU: benchmarks/gpu.sh /tmp/gpu.jsonl --tiny
# PTUNE_DATA names the folder that holds glue/, PYTHON the interpreter.
cd "$(dirname "$0")/.." || exit 1
output=${1:-runs/gpu/gpu.jsonl}
shift
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
exec "${PYTHON:-python3}" -W ignore benchmarks/gpu.py --output "$output" "$@"
