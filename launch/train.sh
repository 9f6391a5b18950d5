#!/bin/sh
# General distillation of a text file:
#   sh launch/train.sh TRAIN_FILE TEACHER STUDENT OUTPUT [--flags of general_distill]
# or the same four as environment variables: TRAIN_FILE=corpus.txt TEACHER=... STUDENT=... OUTPUT=... sh launch/train.sh
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)

usage() {
    cat >&2 <<'USAGE'
usage: sh launch/train.sh TRAIN_FILE TEACHER STUDENT OUTPUT [--flags of general_distill]

  TRAIN_FILE  text, one sentence per line, a blank line between documents (a file, a folder or a pattern)
  TEACHER     folder or hub name of the model to learn from
  STUDENT     folder, config.json, or a name such as tinybert-4l-312
  OUTPUT      folder to write; the same command on it resumes

Each may be an environment variable of the same name instead. More variables, with their defaults:
  NUM_PROCESSES 1       processes; with more than one, accelerate launch starts them
  ACCELERATE_CONFIG     its config file (default: multi_gpu.yaml of accelerate_configs/, without a GPU cpu_2_processes.yaml)
  MAX_SEQ_LEN 128       TRAIN_BATCH_SIZE 32     LEARNING_RATE 1e-4      NUM_TRAIN_EPOCHS 3
USAGE
    printf '\nmissing: %s\n' "$1" >&2
    exit 2
}

for name in TRAIN_FILE TEACHER STUDENT OUTPUT; do
    case ${1:-} in
    "" | --*) break ;;
    esac
    eval "$name=\$1"
    shift
done
for name in TRAIN_FILE TEACHER STUDENT OUTPUT; do
    eval "value=\${$name:-}"
    [ -n "$value" ] || usage "$name"
done
. "$ROOT/launch/setup.sh"

NUM_PROCESSES=${NUM_PROCESSES:-1}
set -- -m tinybert_dist.stages.general_distill --train_file_path "$TRAIN_FILE" --teacher_model "$TEACHER" \
    --student_model "$STUDENT" --output_dir "$OUTPUT" --max_seq_len "${MAX_SEQ_LEN:-128}" \
    --train_batch_size "${TRAIN_BATCH_SIZE:-32}" --learning_rate "${LEARNING_RATE:-1e-4}" \
    --num_train_epochs "${NUM_TRAIN_EPOCHS:-3}" "$@"
if [ "$NUM_PROCESSES" = 1 ] && [ -z "${ACCELERATE_CONFIG:-}" ]; then
    exec "$PYTHON" "$@"
fi
if [ -z "${ACCELERATE_CONFIG:-}" ]; then
    if has_nvidia_gpu; then ACCELERATE_CONFIG=$ROOT/accelerate_configs/multi_gpu.yaml
    else ACCELERATE_CONFIG=$ROOT/accelerate_configs/cpu_2_processes.yaml; fi
fi
exec "$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" --num_processes "$NUM_PROCESSES" "$@"
