import subprocess
import sys

import pytest

from tinybert_dist import cli


def test_without_a_stage_lists_them_with_their_purpose(capsys):
    cli.main([])
    listing = capsys.readouterr().out
    for name in cli.stage_names():
        line = next(line for line in listing.splitlines() if line.startswith(f"  {name} "))
        assert len(line.removeprefix(f"  {name}").strip()) > 20, f"stages/{name}.py has no one-line purpose"


def test_unknown_stage_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["colect-docs", "--output_dir", "x"])
    assert stop.value.code == 2
    assert "Did you mean collect_docs?" in capsys.readouterr().err


def test_runs_a_stage_and_returns_nothing(tmp_path, capsys):
    # a returned dict would become the exit code of the console script
    assert cli.main(["collect-docs", "--output_dir", str(tmp_path), "--dry_run"]) is None
    assert "would read" in capsys.readouterr().out


def test_listing_imports_neither_torch_nor_transformers():
    code = "import sys; from tinybert_dist.cli import main; main([]); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )
