#!/usr/bin/env bash
# The same command on every machine, by torchrun, without ssh between them:
#   NODES=2 MASTER=worker-1 bash launch/multi_node/torchrun.sh --tasks vqa,gqa,nlvr2,coco --run runs/big
# GPUS is the number of processes on this machine (default: its GPUs, 1 without). PORT and JOB tell runs apart that share MASTER.
set -euo pipefail
cd "$(dirname "$0")/../.."
NODES="${NODES:?set NODES to the number of machines}"
MASTER="${MASTER:?set MASTER to a name or an address of the first machine that all others reach}"
GPUS="${GPUS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
# Behind -- stand the script's own flags: torchrun would take --run for a short form of one of its own.
exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-backend c10d --rdzv-endpoint "$MASTER:${PORT:-29500}" \
    --rdzv-id "${JOB:-mtvl}" --rdzv-conf join_timeout=120 -- "${SCRIPT:-launch/train.py}" "$@"
