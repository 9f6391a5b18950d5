import json
from pathlib import Path

import pytest
from campaign import Campaign, runs
from command_lines import flags

from tinybert_dist.stages import general_distill


@pytest.fixture(scope="session")
def several_runs(launch, tmp_path_factory):
    """several_runs(config, num_processes, [(stage, options), ...]): one launch that runs them all."""

    def run(config, num_processes, plan, **keywords):
        path = tmp_path_factory.mktemp("plan") / "runs.json"
        path.write_text(json.dumps([[stage, flags(options)] for stage, options in plan]))
        script = Path(__file__).with_name("several_runs.py")
        return launch(script, path, config=config, num_processes=num_processes, timeout_s=900, **keywords)

    return run


@pytest.fixture(scope="session")
def stages(workspace):
    """Options of the stages on the small workspace; no dropout: another split would draw differently."""
    student = json.loads((workspace / "student.json").read_text())
    student |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (workspace / "no_dropout.json").write_text(json.dumps(student))
    common = {
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "no_dropout.json",
        "max_seq_length": 32,
        "train_batch_size": 12,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.5,  # clips every step
        "logging_steps": 1,
        "wandb_mode": "disabled",
    }
    general = common | {"train_file_path": workspace / "corpus.txt"}
    student = workspace / "student_without_dropout"
    general_distill.main(flags(general | {"output_dir": student, "max_steps": 2}))
    task = common | {"data_dir": workspace / "task", "student_model": student}
    finetune = {name: value for name, value in task.items() if name != "student_model"}
    return {
        "general_distill": general,
        "task_distill": task,
        "finetune_teacher": finetune | {"teacher_model": student},
    }


@pytest.fixture(scope="session")
def campaign(several_runs, stages, workspace, tmp_path_factory):
    """campaign(config, num_processes=2): the runs of that configuration, started when first asked for."""
    known = {}

    def of(config, num_processes=2):
        if (config, num_processes) not in known:
            folder = tmp_path_factory.mktemp(f"{config}_{num_processes}")
            plan = runs(stages, workspace, config, num_processes)
            placed = [(s, options | {"output_dir": folder / name}) for name, (s, options) in plan.items()]
            result = several_runs(config, num_processes, placed)
            known[config, num_processes] = Campaign(folder, result.stdout, len(plan))
        return known[config, num_processes]

    return of
