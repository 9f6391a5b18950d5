import json
import shutil
from types import SimpleNamespace

import pytest
from recipe_files import RECIPES

GLUE_RECIPE = RECIPES / "tinybert4_glue.yaml"


@pytest.fixture(scope="session")
def pretrained(workspace, tmp_path_factory):
    """The folder of a small masked LM with random weights: stands for a name on the hub."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from tinybert_dist.models import load_tokenizer

    folder = tmp_path_factory.mktemp("hub") / "bert"
    teacher = json.loads((workspace / "teacher" / "config.json").read_text())
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    torch.manual_seed(0)
    config = BertConfig(max_position_embeddings=64, **{size: teacher[size] for size in sizes})
    BertForMaskedLM(config).save_pretrained(folder)
    load_tokenizer(workspace / "vocab").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scaled_down(workspace, pretrained):
    """scaled_down(folder): what to --set so that the GLUE recipes run in seconds, all in `folder`."""

    def settings(folder, **more):
        changes = {
            "output_dir": folder / "runs",
            "common": folder / "common",
            "glue": folder / "glue",
            "pretrained": pretrained,
            "corpus": folder / "corpus.txt",
            "student": workspace / "student.json",
            "glove": "",
            "splits": "[dev]",
            "general_length": 32,
            "general_epochs": 0.2,
            "max_seq_length": 24,
            "teacher_epochs": 1,
            "draws": 2,
            "step_1_epochs": 0.1,
            "step_2_epochs": 0.1,
        }
        return [word for name, value in {**changes, **more}.items() for word in ("--set", f"{name}={value}")]

    return settings


@pytest.fixture(scope="session")
def finished(workspace, scaled_down, tmp_path_factory):
    """The shipped GLUE recipe, run to the end: its folder, and what was printed."""
    import contextlib
    import io
    import os

    from tinybert_dist.stages import pipeline

    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(workspace / "corpus.txt", folder)
    (folder / "glue" / "SST-2").mkdir(parents=True)
    for split, count in (("train", 25), ("dev", 13)):
        rows = (workspace / "task" / f"{split}.tsv").read_text().splitlines()[1:count]
        lines = ["sentence\tlabel", *(row.replace("\tyes", "\t1").replace("\tno", "\t0") for row in rows)]
        (folder / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    os.environ["WANDB_MODE"] = "disabled"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        pipeline.main([str(GLUE_RECIPE), *scaled_down(folder)])
    return SimpleNamespace(folder=folder, printed=printed.getvalue())


@pytest.fixture
def mine(finished, scaled_down, tmp_path, capsys):
    """A copy of the finished recipe's folder; pipeline(*arguments, **settings) returns what it prints.

    lines: of the recipe, to be replaced by others.
    """
    from tinybert_dist.stages import pipeline

    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    capsys.readouterr()

    def run(*arguments, lines=(), **settings):
        recipe = GLUE_RECIPE.read_text()
        for old, new in lines:
            assert old in recipe
            recipe = recipe.replace(old, new)
        (tmp_path / "recipe.yaml").write_text(recipe)
        pipeline.main([str(tmp_path / "recipe.yaml"), *scaled_down(folder, **settings), *arguments])
        return capsys.readouterr().out

    return SimpleNamespace(folder=folder, pipeline=run)
