#!/usr/bin/env bash
# The main job on one machine: one shared checkpoint on four tasks, its text-only baseline, one table.
# Data are the embedded miniworld (made on first use). RUN names the run folder; further arguments are key=value.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN="${RUN:-runs/main}"
TASKS="${TASKS:-vqa,gqa,nlvr2,coco}"
begin=$(date +%s)
deepspeed launch/train.py --tasks "$TASKS" --run "$RUN" "$@"
deepspeed launch/train.py --tasks "$TASKS" --run "$RUN/text_only" data.text_only=true "$@"
deepspeed launch/evaluate.py --checkpoint "$RUN" --tasks "$TASKS"
echo "main job: $(( $(date +%s) - begin )) seconds"
