#!/usr/bin/env bash
# The main job on one machine: one shared checkpoint on eight tasks, its text-only baseline, one table.
# Data are the embedded miniworld (made on first use). RUN names the run folder, TASKS the tasks; further arguments are
# key=value.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN="${RUN:-runs/main}"
TASKS="${TASKS:-vqa,gqa,nlvr2,coco,tvqa,how2qa,tvc,yc2c}"
begin=$(date +%s)
deepspeed launch/train.py --tasks "$TASKS" --run "$RUN" "$@"
deepspeed launch/train.py --tasks "$TASKS" --run "$RUN/text_only" data.text_only=true "$@"
deepspeed launch/evaluate.py --checkpoint "$RUN" --tasks "$TASKS"
echo "main job: $(( $(date +%s) - begin )) seconds"
