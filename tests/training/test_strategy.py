"""What starts and what does not: deepspeed stays away, processes really train together."""

import subprocess
import sys

import pytest


def test_what_takes_long_to_import_is_not_imported_by_a_run(workspace, tmp_path):
    """DeepSpeed takes seconds, compiles things and speaks up: only its configs may ask for it."""
    arguments = [
        "--train_file_path", workspace / "corpus.txt", "--teacher_model", workspace / "teacher",
        "--student_model", workspace / "student.json", "--output_dir", tmp_path / "run", "--max_seq_len", 32,
        "--max_steps", 2, "--wandb_mode", "disabled",
    ]  # fmt: skip
    code = (
        "import sys; from tinybert_dist.stages import general_distill as g; g.main(sys.argv[1:]); "
        "assert 'torch.distributed' in sys.modules; print({'deepspeed', 'sklearn'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == "set()"


def test_processes_that_do_not_see_one_another_are_refused(monkeypatch):
    from accelerate.state import AcceleratorState, PartialState

    from tinybert_dist.config import UserError
    from tinybert_dist.training.strategy import start_accelerator

    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    PartialState(cpu=True)  # something made this process one of one before
    monkeypatch.setenv("WORLD_SIZE", "2")
    try:
        with pytest.raises(UserError, match="started 2 processes but they see 1"):
            start_accelerator()
    finally:
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
