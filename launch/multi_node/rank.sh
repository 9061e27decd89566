#!/usr/bin/env bash
# One process of a Slurm step: turns Slurm's variables into those that launch/train.py reads, and becomes it.
#   srun --nodes 2 --ntasks-per-node 8 --gpus-per-task 1 launch/multi_node/rank.sh --tasks vqa,gqa,nlvr2,coco --run runs/big
# SCRIPT=launch/evaluate.py evaluates.
set -euo pipefail
: "${SLURM_PROCID:?is set by srun; start this file with srun, or with launch/multi_node/slurm.sbatch}"
cd "$(dirname "$0")/../.."
export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_SIZE="${SLURM_NTASKS_PER_NODE:-$(( (SLURM_NTASKS + SLURM_NNODES - 1) / SLURM_NNODES ))}"
# With a GPU bound to each task every process sees one GPU alone, and its number is 0.
visible="${CUDA_VISIBLE_DEVICES:-}"
if [[ -n "$visible" && "$visible" != *,* ]]; then export LOCAL_RANK=0; else export LOCAL_RANK="$SLURM_LOCALID"; fi
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
# From the job's number, so that two jobs on one machine do not meet.
export MASTER_PORT="${MASTER_PORT:-$(( 20000 + SLURM_JOB_ID % 20000 ))}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
exec python "${SCRIPT:-launch/train.py}" "$@"
