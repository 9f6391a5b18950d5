#!/bin/sh
# Prints a task file for sweep.sh: step 2 of task distillation on GLUE with the paper's choices, six runs a task.
# Arguments are added to every line.
#
#   TASKS="MRPC RTE" sh launch/slurm/glue_sweep.sh --wandb_mode offline > runs/sweep.txt
#
# RUNS (default runs) holds TASK/teacher and TASK/step_1 and gets TASK/sweep/..., GLUE (default glue) the data.
set -eu
RUNS=${RUNS:-runs} GLUE=${GLUE:-glue}
for task in ${TASKS:-CoLA MNLI MRPC QNLI QQP RTE SST-2 STS-B}; do
    case $task in CoLA | SST-2) length=64 ;; *) length=128 ;; esac
    for batch in 16 32; do
        for rate in 1e-5 2e-5 3e-5; do
            printf '%s ' task_distill --pred_distill --task_name "$task" --data_dir "$GLUE/$task" --aug_train \
                --teacher_model "$RUNS/$task/teacher" --student_model "$RUNS/$task/step_1" \
                --max_seq_length $length --num_train_epochs 3 --train_batch_size $batch --learning_rate $rate \
                --output_dir "$RUNS/$task/sweep/$batch-$rate" "$@"
            echo
        done
    done
done
