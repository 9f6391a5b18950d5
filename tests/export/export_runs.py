"""Exports in this process, as a command line would start them."""

import shutil

import numpy as np
from safetensors.torch import load_file, save_file

from tinybert_dist.config import parse
from tinybert_dist.files import read_json, write_json
from tinybert_dist.stages import evaluate, export

QUICK = {"length_tokens": [8, 16], "batch_size": [1, 4], "repeats": 3, "wandb_mode": "disabled"}


def flags(options):
    """--name value ... of a dict; a list: several values, None: left out."""
    argv = []
    for name, value in options.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def run_export(workspace, output_dir, **changes):
    """Exports workspace/teacher; without data_dir=None scored on workspace/task."""
    options = QUICK | {
        "model": workspace / "teacher",
        "data_dir": workspace / "task",
        "max_seq_length": 32,
        "output_dir": output_dir,
    }
    return export.run(parse(export.ExportConfig, flags(options | changes)))


def run_evaluate(workspace, output_dir, **changes):
    options = {"data_dir": workspace / "task", "output_dir": output_dir, "max_seq_length": 32}
    return evaluate.run(parse(evaluate.EvaluateConfig, flags(options | changes)))


def session(file):
    """onnxruntime alone, as somebody else would use it."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def logits_of(file, inputs):
    """Logits of a file for what a tokenizer returned."""
    opened = session(file)
    wanted = {entry.name: np.asarray(inputs[entry.name]) for entry in opened.get_inputs()}
    return opened.run(["logits"], wanted)[0]


def with_head(source, folder, weight, bias, **config):
    """A copy of a model folder with another classifier and other entries in its config."""
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    state["classifier.weight"], state["classifier.bias"] = weight.contiguous(), bias
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", read_json(folder / "config.json") | config)
    return folder


def content(folder):
    """Bytes of every file under a folder by name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
