import contextlib
import io
import os
import tempfile
from types import SimpleNamespace

import pytest
from benchmark_runs import run

from tinybert_dist.files import read_json


@pytest.fixture(scope="session")
def measured(workspace, tmp_path_factory):
    """The benchmark of every stage on the workspace's models and text: result, JSON, what was printed, and
    everything it left in the folder it was started from, in its output folder and among temporary files.
    """
    here, temporary = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("temporary")
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    text_before = sorted(workspace.rglob("*"))
    printed, started_in = io.StringIO(), os.getcwd()
    os.chdir(here)
    try:
        with contextlib.redirect_stdout(printed):
            result = run(workspace, output_dir="out", train_file_path=workspace / "corpus.txt")
    finally:
        os.chdir(started_in)
        tempfile.tempdir = before
    left = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
    assert sorted(workspace.rglob("*")) == text_before
    return SimpleNamespace(
        result=result,
        json=read_json(here / "out" / "benchmark.json"),
        printed=printed.getvalue(),
        left=left,
        temporary=list(temporary.iterdir()),
    )


@pytest.fixture(scope="session")
def accelerator():
    """One process on the CPU, float32."""
    from tinybert_dist.training.strategy import start_accelerator

    return start_accelerator("no")
