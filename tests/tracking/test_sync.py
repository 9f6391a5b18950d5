"""`wandb sync` of what runs leave, to a server on this machine."""

import re

import wandb_files
from command_lines import general_distillation

from tinybert_dist.config import parse
from tinybert_dist.stages import general_distill


def test_one_command_brings_a_pipeline_with_its_lineage(chain, chain_files, server, sync):
    sync(chain / "runs")
    ids = {name: wandb_files.runs(path)[0].run_id for name, path in chain_files.items()}
    assert set(server.runs) == set(ids.values())
    assert {run["groupName"] for run in server.runs.values()} == {"night"}
    assert server.runs[ids["general"]]["jobType"] == "general_distill"
    assert [row["step"] for row in server.history[ids["general"]]] == [1, 2, 3, 4]
    models = {
        name: server.artifact(f"{stage}-{name}")
        for name, stage in (
            ("teacher", "finetune_teacher"),
            ("general", "general_distill"),
            ("step_1", "task_distill_intermediate"),
            ("student", "task_distill_prediction"),
        )
    }
    assert {name: server.used[ids[name]] for name in ("step_1", "student", "eval")} == {
        "step_1": {models["teacher"], models["general"]},
        "student": {models["teacher"], models["step_1"]},
        "eval": {models["student"]},
    }
    for name, model in models.items():
        assert ids[name] in server.artifacts[model]["makers"]
        assert {
            f"{model}/{file}" for file in ("model.safetensors", "config.json", "lineage.json")
        } <= server.files
    assert any(re.search("table/augmentations", file) for file in server.files)
    assert any(re.search("images/report", file) for file in server.files)
    sent = b"\n".join(server.received)
    assert [
        part[:300] for part in re.findall(rb".{100}" + re.escape(str(chain).encode()) + rb".{50}", sent)
    ] == []


def test_the_parts_of_a_resumed_run_arrive_in_order(workspace, tmp_path, server, sync):
    folder = tmp_path / "run"
    options = {"max_seq_len": 32, "train_batch_size": 8, "max_steps": 3, "logging_steps": 1}
    options |= {"wandb_mode": "offline", "max_seconds": 1e-6}
    argv = general_distillation(workspace, folder, **options)
    config = parse(general_distill.GeneralDistillConfig, argv)
    outcomes = [general_distill.run(config)["outcome"] for _ in range(3)]
    assert outcomes == ["interrupted", "interrupted", "finished"]
    parts = sorted(folder.glob("wandb/offline-run-*"))
    assert len(parts) == 3
    (run_id,) = {wandb_files.runs(file)[0].run_id for file in wandb_files.run_files(folder)}
    sync(folder)
    assert set(server.runs) == {run_id}
    assert [row["step"] for row in server.history[run_id]] == [1, 2, 3]
