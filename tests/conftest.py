import os
import re
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"  # a second per run; tests of wandb ask for it


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and task data beside the checkout, or TINYBERT_TEST_DATA; skips without them."""
    folder = Path(
        os.environ.get("TINYBERT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets ({folder.name}/ beside the checkout or TINYBERT_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Real English sentences that every Python has: the language reference's own topics."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[key].split()) for key in sorted(topics))
    found = [
        s for s in re.split(r"(?<=[a-z]\.) ", text) if s.isascii() and 20 < len(s) < 200 and "\t" not in s
    ]
    return found[:600]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, sentences) -> Path:
    """What a user starts from: vocab/, corpus.txt, teacher/ (random weights), student.json, task/."""
    from model_folders import write_tiny_pair
    from tokenizers import BertWordPieceTokenizer

    from tinybert_dist.models import load_tokenizer

    folder = tmp_path_factory.mktemp("workspace")
    (folder / "vocab").mkdir()
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(sentences, vocab_size=500, show_progress=False)
    trainer.save_model(str(folder / "vocab"))
    documents = ["\n".join(sentences[i : i + 8]) for i in range(0, 320, 8)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    write_tiny_pair(folder, load_tokenizer(folder / "vocab"))
    (folder / "task").mkdir()
    for name, part in (("train", sentences[:160]), ("dev", sentences[160:220])):
        rows = [f"{s}\t{'yes' if ' the ' in s else 'no'}" for s in part]
        (folder / "task" / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def reference():
    """What the original code computed, as arrays by name, and the facts beside them."""
    import json

    import numpy as np
    import torch

    folder = Path(__file__).parent / "fixtures" / "reference"
    with np.load(folder / "reference_float64.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return arrays, json.loads((folder / "reference.json").read_text())


@pytest.fixture
def student_folder(reference, tmp_path):
    """A task student with 3 classes as the original code leaves it."""
    from model_folders import weights_of, write_reference_folder

    state = weights_of(reference, "student_cls")
    return write_reference_folder(tmp_path / "student", state, reference[1]["student_config"])


@pytest.fixture
def general_folder(reference, tmp_path):
    """A general student as the original code leaves it."""
    from model_folders import weights_of, write_reference_folder

    state = weights_of(reference, "student_pre")
    return write_reference_folder(tmp_path / "general", state, reference[1]["student_config"])


CONFIGS = Path(__file__).resolve().parents[1] / "accelerate_configs"


@pytest.fixture(scope="session")
def launch():
    """launch(stage, *arguments, num_processes=2, wait=True): a real `accelerate launch`, as a user types it.

    stage: its name, or the path of a script; config: a file of accelerate_configs/ (default: plain CPU).
    launcher: further arguments of accelerate launch itself.
    Returns the finished process (output captured), or with wait=False the Popen, in its own process group.
    """
    import subprocess
    import sys

    def run(
        stage: str | Path,
        *arguments: object,
        num_processes: int = 2,
        config: str = "",
        wait: bool = True,
        check: bool = True,
        timeout_s: float = 300,
        launcher: tuple[str, ...] = (),
    ):
        config = config or ("cpu" if num_processes == 1 else "cpu_2_processes")
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", str(num_processes)]
        command += launcher
        command += [str(stage)] if isinstance(stage, Path) else ["-m", f"tinybert_dist.stages.{stage}"]
        command += map(str, arguments)
        pipe = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "start_new_session": True,
        }
        process = subprocess.Popen(command, **pipe)
        if not wait:
            return process
        output, _ = process.communicate(timeout=timeout_s)
        result = subprocess.CompletedProcess(command, process.returncode, output)
        assert not check or process.returncode == 0, output[-4000:]
        return result

    return run
