#!/bin/sh
# Once, on a machine with internet that shares its disks with the nodes: the environment, and all that jobs will read.
#
#   sh launch/slurm/prefetch.sh bert-base-uncased hub:wikimedia/wikipedia
#
# Models go into the Hugging Face cache (HF_HOME, default ~/.cache/huggingface: it must be on a shared disk) and keep
# their names. Data sets, hub:NAME, go to data/NAME: give that folder as --train_file_path.
set -eu
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
. "$ROOT/launch/setup.sh"
export HF_HUB_OFFLINE=0
exec "$PYTHON" - "$@" <<'PYTHON_END'
import sys
from pathlib import Path

from huggingface_hub import snapshot_download

from tinybert_dist.config import UserError
from tinybert_dist.models import load_tokenizer, model_folder

for name in sys.argv[1:]:
    try:
        if name.startswith("hub:"):
            name = name.removeprefix("hub:")
            print(f"{name}: {snapshot_download(name, repo_type='dataset', local_dir=Path('data') / name)}")
        else:
            load_tokenizer(name)
            print(f"{name}: {model_folder(name)}")
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"{name}: {error}")
print("everything is there")
PYTHON_END
