#!/usr/bin/env bash
# Train on the machines of a hostfile, by deepspeed, pdsh and ssh:
#   HOSTFILE=hosts.txt bash launch/multi_node/hostfile.sh --tasks vqa,gqa,nlvr2,coco --run runs/big engine.file=ds_configs/zero2_bf16.json \
#       train.precision=bf16
# Hostfile: a line 'HOST slots=PROCESSES' for each machine. Project, environment, data and run folder lie at the same paths on
# all of them. What the processes there shall find in their environment stands in the file that DS_ENV_FILE names, a
# NAME=value a line: beside PYTHON* and, on GPUs, NCCL*, pdsh passes on nothing else. SCRIPT=launch/evaluate.py evaluates.
set -euo pipefail
cd "$(dirname "$0")/../.."
HOSTFILE="${HOSTFILE:?set HOSTFILE to a file with lines such as: worker-1 slots=8}"
PORT="${MASTER_PORT:-29500}"
mtvl nodes --hostfile "$HOSTFILE" --master-port "$PORT"
exec deepspeed --hostfile "$HOSTFILE" --master_port "$PORT" "${SCRIPT:-launch/train.py}" "$@"
