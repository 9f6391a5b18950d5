#!/usr/bin/env bash
# A teacher, its student and the report card in a few minutes on a CPU. Nothing is downloaded after the installation:
# the text is the documentation of the Python packages installed. Arguments go to the pipeline, e.g. --dry_run.
#   OUTPUT   where everything is written, seen from the checkout (default: runs/quickstart); run again to continue there
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NEEDS=test # beside what training needs: onnxruntime, for the export
. "$ROOT/launch/setup.sh"
cd "$ROOT" # relative paths: what is written names no folder of this machine
OUTPUT=${OUTPUT:-runs/quickstart}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$PYTHON" -m tinybert_dist.stages.pipeline launch/recipes/quickstart.yaml --set "output_dir=$OUTPUT" "$@"
if [ -f "$OUTPUT/report.md" ]; then
    OUTPUT=$(cd "$OUTPUT" && pwd)
    printf '\nThe report card:   %s\n' "$OUTPUT/report.md"
    printf 'The student model: %s\n' "$OUTPUT/student"
fi
