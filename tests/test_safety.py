"""Nothing that a run reads runs: no pickle, no code in a model folder; and no name in it leads outside."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import tinybert_dist
from tinybert_dist import cli, models
from tinybert_dist.config import UserError
from tinybert_dist.data.glue import is_glue
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.files import sha256_of, write_json
from tinybert_dist.pipeline.recipe import read_recipe
from tinybert_dist.stages import augment, evaluate, general_distill, task_distill
from tinybert_dist.training.checkpoint import FILES, Checkpoints
from tinybert_dist.training.student import new_or_trained_student
from tinybert_dist.training.tracking import Tracker, TrackingOptions
from tinybert_dist.training.trained import MOMENTS

# --- pickles ------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture
def canary(tmp_path):
    """What a payload would make; checked at the end."""
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Payload(proof)))  # noqa: S301 - the payload does fire when it is executed
    assert proof.is_dir()
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def plant(file, canary, zipped=False):
    if zipped:
        torch.save({"bert.embeddings.x": Payload(canary)}, file)
    else:
        file.write_bytes(pickle.dumps(Payload(canary), protocol=2))


# what training programs and other ports leave beside a model
BESIDE = [
    "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "random_states_0.pkl",
    "trainer_state.json", "vocab.pkl", "spiece.model", "tokenizer.model", "generation_config.json",
    "merges.txt", "vocab.json",
]  # fmt: skip
READ = [
    "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "step_7_pytorch_model.bin", "projections.safetensors", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt", "added_tokens.json", "special_tokens_map.json",
    "chat_template.jinja",
]  # fmt: skip
LOADERS = [
    models.load_encoder,
    models.load_classifier,
    models.load_masked_lm,
    models.load_projections,
    models.load_tokenizer,
    models.load_config,
    lambda folder: new_or_trained_student(str(folder), models.load_encoder(folder), seed=0),
]


@pytest.mark.parametrize(
    ("name", "zipped"),
    [(name, False) for name in [*READ, *BESIDE]]
    + [(name, True) for name in [*READ, *BESIDE] if name.endswith((".bin", ".pt"))],
)
def test_a_pickle_in_place_of_any_file_of_a_model_does_not_run(workspace, tmp_path, canary, name, zipped):
    folder = shutil.copytree(workspace / "teacher", tmp_path / "model")
    if "model" in name and name in READ:  # the first that is there is the one that is read
        (folder / "model.safetensors").unlink()
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    plant(folder / name, canary, zipped)
    refused = 0
    for load in LOADERS:
        try:
            load(folder)
        except UserError as error:
            assert str(folder) in str(error)
            refused += 1
    assert bool(refused) == (name in READ)


def test_stages_run_nothing_of_a_planted_folder(workspace, tmp_path, canary, capsys):
    """Whole models among planted files are used; a planted .bin in place of the weights ends the stage."""
    for weights in (True, False):
        planted = shutil.copytree(workspace / "teacher", tmp_path / f"planted-{weights}")
        for name in (name for name in BESIDE if not name.endswith(".json")):
            plant(planted / name, canary)
        plant(planted / "pytorch_model.bin", canary)
        if not weights:
            (planted / "model.safetensors").unlink()
        own, teacher, task = planted, workspace / "teacher", workspace / "task"
        common = {"max_seq_length": 32}
        training = common | {"max_steps": 1, "wandb_mode": "disabled"}
        distil = {"train_file_path": workspace / "corpus.txt", **training}
        stages = [
            (general_distill, distil | {"teacher_model": own, "student_model": workspace / "student.json"}),
            (general_distill, distil | {"teacher_model": teacher, "student_model": own}),
            (task_distill, training | {"teacher_model": own, "student_model": teacher, "data_dir": task}),
            (evaluate, common | {"model": own, "data_dir": task}),
        ]
        if not weights:  # the whole one is a classifier and fills in no words
            stages.append((augment, {"pretrained_bert_model": own, "data_path": task / "dev.tsv"}))
        for number, (stage, options) in enumerate(stages):
            own_folder = {"output_dir": tmp_path / f"out-{weights}-{number}"}
            argv = [str(x) for item in (options | own_folder).items() for x in (f"--{item[0]}", item[1])]
            if weights:
                stage.main(argv)
                continue
            with pytest.raises(SystemExit) as stop:
                stage.main(argv)
            assert stop.value.code == 2, stage
            assert "pytorch_model.bin: holds more than tensors" in capsys.readouterr().err, stage


def tensors(step):
    parameters = {"weight": torch.full((3, 4), float(step))}
    return parameters, {f"{m}.weight": torch.ones(3, 4) for m in MOMENTS}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", [*FILES, "manifest.json", *BESIDE])
def test_a_pickle_in_place_of_any_file_of_a_checkpoint_does_not_run(tmp_path, canary, name, listed):
    checkpoints, said = Checkpoints(tmp_path / "checkpoints", keep=2), []
    for step in (1, 2):
        checkpoints.save(*tensors(step), {"step": step, "needs": []})
    folder = checkpoints.path(2)
    plant(folder / name, canary)
    if listed and name != "manifest.json":
        entries = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in FILES}
        (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))
    newest = checkpoints.newest(said.append)
    assert newest.step == (2 if name in BESIDE else 1) and len(said) == int(name not in BESIDE)
    assert newest.parameters().keys() == {"weight"} and len(newest.moments()) == 2


@pytest.mark.parametrize("name", ["manifest.json", "tokens-00000.arrow"])
def test_a_pickle_in_place_of_any_file_of_a_corpus_does_not_run(workspace, tmp_path, canary, name):
    from tinybert_dist.stages import prepare_corpus

    options = {
        "train_file_path": workspace / "corpus.txt",
        "teacher_model": workspace / "teacher",
        "output_dir": tmp_path / "tokens",
    }
    prepare_corpus.main([str(x) for key, value in options.items() for x in (f"--{key}", value)])
    for file in (tmp_path / "tokens").rglob(name):
        plant(file, canary)
    with pytest.raises(UserError):
        TokenDataset.open(tmp_path / "tokens")


# --- code in model folders ----------------------------------------------------------------------------------


def test_code_in_model_folders_is_not_imported(workspace, tmp_path, canary):
    planted = shutil.copytree(workspace / "teacher", tmp_path / "planted")
    code = f"import os; os.mkdir({str(canary)!r})\n"
    for name in (
        "evil.py",
        "__init__.py",
        "modeling_bert.py",
        "tokenization_bert.py",
        "configuration_bert.py",
    ):
        (planted / name).write_text(code)
    classes = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification")
    for name, auto_map in (
        ("config.json", {c: "evil.Evil" for c in classes} | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ):
        content = json.loads((planted / name).read_text())
        custom = {"auto_map": auto_map, "custom_pipelines": {"x": {"impl": "evil.Evil"}}}
        (planted / name).write_text(json.dumps(content | custom | {"trust_remote_code": True}))
    options = {
        "teacher_model": planted,
        "student_model": planted,
        "train_file_path": workspace / "corpus.txt",
        "output_dir": tmp_path / "run",
        "max_seq_length": 32,
        "max_steps": 1,
        "wandb_mode": "disabled",
    }
    argv = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    assert general_distill.main(argv)["outcome"] == "finished"
    for path in (tmp_path / "run").rglob("*"):
        assert path.suffix != ".py" and not (path.is_file() and b"evil" in path.read_bytes()), path


def calls():
    """(file, dotted name of what is called, its keywords) of every call in the package."""
    for file in Path(tinybert_dist.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                yield file.name, ast.unparse(node.func), keywords


def test_nothing_in_the_package_can_unpickle_or_run_text():
    seen = list(calls())
    forbidden = {
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "eval",
        "exec",
        "os.system",
        "yaml.unsafe_load",
    }
    assert [call for call in seen if call[1] in forbidden] == []
    assert [call for call in seen if call[2].get("trust_remote_code", "False") != "False"] == []
    assert [call for call in seen if call[2].get("shell", "False") != "False"] == []
    assert [call for call in seen if call[2].get("allow_pickle", "False") != "False"] == []
    loads = [call for call in seen if call[1] == "torch.load"]
    assert loads and all(call[2]["weights_only"] == "True" for call in loads)


# --- names that lead elsewhere ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["../outside.safetensors", "absolute", "a/../../outside.safetensors"])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_weight_index_cannot_lead_outside(workspace, tmp_path, form, kind):
    folder = shutil.copytree(workspace / "teacher", tmp_path / "model")
    (folder / "a").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    name = str(tmp_path / "outside.safetensors") if form == "absolute" else form
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="which is not a file in this folder"):
        models.load_encoder(folder)


@pytest.mark.parametrize("needs", [["../../outside"], [-1], ["/outside"], 3])
def test_a_checkpoint_cannot_need_what_lies_outside(tmp_path, needs):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    folder = checkpoints.save(*tensors(1), {"step": 1, "needs": []})
    state = {"step": 1, "needs": needs}
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / "state.json"
    manifest["files"]["state.json"] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoints.problem(folder)


@pytest.mark.parametrize("name", ["../SST-2", "/SST-2", "SST-2/..", "./sst2"])
def test_a_tasks_name_is_no_path(name):
    assert not is_glue(name) and is_glue("sst_2")


@pytest.mark.parametrize("name", ["../../evil", "/evil"])
def test_a_tracking_id_is_no_path(tmp_path, name):
    import wandb

    write_json(tmp_path / "run" / "wandb" / "s.json", {"run_id": name})
    with pytest.raises(wandb.errors.Error, match="cannot contain"):
        Tracker(TrackingOptions(wandb_mode="offline"), "s", tmp_path / "run", True, {})
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_stages_name_is_no_path(tmp_path, capsys):
    evil = tmp_path / "evil.py"
    evil.write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})\n")
    for name in ("../evil", str(evil.with_suffix("")), "..evil"):
        with pytest.raises(SystemExit):
            cli.main([name])
        (tmp_path / "recipe.yaml").write_text(f"stages: [{{name: ../x, stage: {name}, args: {{}}}}]\n")
        with pytest.raises(UserError, match="there is no stage"):
            read_recipe(tmp_path / "recipe.yaml")
    assert not (tmp_path / "executed").exists()
