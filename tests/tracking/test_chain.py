"""What the stages of a pipeline leave in wandb's offline files."""

import json
import os

import wandb_files
from tiny_masked_lm import CHINESE

from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.files import read_json, sha256_of

JOB_TYPES = {
    "tokens": "prepare_corpus",
    "teacher": "finetune_teacher",
    "general": "general_distill",
    "step_1": "task_distill_intermediate",
    "student": "task_distill_prediction",
    "eval": "evaluate",
    "augmented": "augment",
    "report": "report",
}


def artifacts(path, kind):
    found = [r.artifact for r in wandb_files.records(path) if r.WhichOneof("record_type") == "artifact"]
    return [artifact for artifact in found if artifact.type == kind]


def table(path, name):
    """(columns, rows) of a table, read where a sync would read it."""
    (artifact,) = [a for a in artifacts(path, "run_table") if a.name.endswith(f"-{name}")]
    (entry,) = artifact.manifest.contents
    content = read_json(path.parents[2] / entry.local_path)
    return content["columns"], content["data"]


def test_one_run_per_stage_named_and_grouped(chain_files):
    assert set(chain_files) == set(JOB_TYPES)
    runs = {name: wandb_files.runs(path)[0] for name, path in chain_files.items()}
    assert {name: run.job_type for name, run in runs.items()} == JOB_TYPES
    assert {run.run_group for run in runs.values()} == {"night"}
    assert {run.project for run in runs.values()} == {"tinybert_dist"}
    assert runs["general"].display_name == "general_distill-general"
    assert len({run.run_id for run in runs.values()}) == len(runs)
    for path in chain_files.values():
        assert wandb_files.records(path)[-1].WhichOneof("record_type") == "exit"


def test_the_config_says_what_decides_the_numbers(chain, chain_files):
    config = wandb_files.config(chain_files["student"])
    identity = read_json(chain / "runs/student/run.json")["identity"]
    assert config["learning_rate"] == identity["learning_rate"] and config["pred_distill"] is True
    assert config["data_dir"] == identity["data_dir"]  # a fingerprint
    assert set(config["versions"]) == {"torch", "transformers", "accelerate"}
    scored = wandb_files.config(chain_files["eval"])
    assert (scored["student_model"], scored["data_dir"], scored["splits"]) == ("student", "task", ["dev"])
    for name, path in chain_files.items():
        config = wandb_files.config(path)
        assert not {"output_dir", "wandb_mode", "wandb_project", "dry_run"} & set(config), name
        assert os.sep not in json.dumps({k: v for k, v in config.items() if k != "_wandb"}), name


def test_metrics_have_our_step_as_their_axis_and_summaries_of_use(chain_files):
    for name in ("general", "student"):
        defined = {m.glob_name or m.name: m for m in wandb_files.metrics(chain_files[name])}
        assert all(m.step_metric == "step" for key, m in defined.items() if key != "step")
        kept = {key: {field.name for field, on in m.summary.ListFields() if on} for key, m in defined.items()}
        assert kept["loss/*"] == {"min", "last"} and kept["eval/*"] == {"min", "max", "last"}
        assert kept["throughput/*"] == {"mean", "last"} and kept["grad_norm"] == {"max", "last"}
    losses = [row["loss/total"] for row in wandb_files.history(chain_files["general"])]
    summary = wandb_files.summary(chain_files["general"])
    assert summary["loss/total"] == {"min": min(losses), "last": losses[-1]}
    summary = wandb_files.summary(chain_files["student"])
    scores = [row["eval/score"] for row in wandb_files.history(chain_files["student"]) if "eval/score" in row]
    assert summary["score"] == summary["best/score"] == max(scores) == summary["eval/score"]["max"]
    assert summary["best/step"] in (2, 4) and summary["step"] == 4
    assert wandb_files.summary(chain_files["eval"])["score"] == summary["score"]


def test_the_worst_predictions_are_shown_first(chain, chain_files):
    for name in ("teacher", "student", "eval"):
        columns, rows = table(chain_files[name], "predictions")
        assert columns == ["text", "label", "prediction", "probability"] and len(rows) == 60
        wrong = [label != prediction for _, label, prediction, _ in rows]
        assert any(wrong) and wrong == sorted(wrong, reverse=True)
        sure = [row[-1] for row, is_wrong in zip(rows, wrong, strict=True) if is_wrong]
        assert sure == sorted(sure, reverse=True)
        lines = (chain / "runs" / name / "predictions.tsv").read_text().splitlines()[1:]
        assert {row[0] for row in rows} == {line.split("\t")[-1] for line in lines}


def test_augmentations_stand_beside_their_originals(chain_files):
    columns, rows = table(chain_files["augmented"], "augmentations")
    assert columns == ["original", "augmented"]
    originals = [row[0] for row in rows]
    assert originals == ["the movie was great", "a very boring film", "".join(CHINESE[:6])]
    for original, augmented in rows:
        assert augmented != original and set(augmented) & set(original)
    assert rows[2][1] and not rows[2][1].isascii()
    (row,) = [row for row in wandb_files.history(chain_files["augmented"]) if "augment/examples" in row]
    assert row["augment/examples"] == 3 and row["augment/new_rows"] > 3


def test_a_corpus_tells_what_it_holds(chain, chain_files):
    counts = read_json(chain / "runs/tokens/manifest.json")["header"]["counts"]
    summary = wandb_files.summary(chain_files["tokens"])
    assert summary["corpus/sentences"] == counts["sentences"] == 320
    assert summary["corpus/bad_records"] == 0 < summary["corpus/tokens_per_s"]
    assert summary["corpus/rows"] == len(TokenDataset.open(chain / "runs/tokens"))


def test_a_model_tells_what_it_was_made_from(chain, chain_files):
    run_ids = {name: wandb_files.runs(path)[0].run_id for name, path in chain_files.items()}
    record = read_json(chain / "runs/student/lineage.json")
    assert record["weights_sha256"] == sha256_of(chain / "runs/student/model.safetensors")
    assert record["wandb"] == {
        "project": "tinybert_dist", "group": "night", "run_id": run_ids["student"], "artifact": True
    }  # fmt: skip
    step_1 = record["made_from"]["student_model"]
    general = step_1["made_from"]["student_model"]
    assert [r["wandb"]["run_id"] for r in (step_1, general)] == [run_ids["step_1"], run_ids["general"]]
    assert general["weights_sha256"] == sha256_of(chain / "runs/general/model.safetensors")
    assert record["made_from"]["teacher_model"]["name"] == "finetune_teacher-teacher"
    assert general["made_from"]["teacher_model"]["name"] == "teacher"  # no run of ours made it
    assert wandb_files.config(chain_files["student"])["made_from"] == record["made_from"]


def test_artifacts_name_files_where_they_are_and_link_what_went_in(chain, chain_files):
    made, used = {}, {}
    for name, path in chain_files.items():
        for artifact in artifacts(path, "model"):
            (used if artifact.use_after_commit else made).setdefault(name, []).append(artifact)
    assert {name: [a.name for a in found] for name, found in made.items()} == {
        name: [f"{JOB_TYPES[name]}-{name}"] for name in ("teacher", "general", "step_1", "student")
    }
    digests = {name: found[0].digest for name, found in made.items()}
    assert {name: [a.digest for a in found] for name, found in used.items()} == {
        "step_1": [digests["teacher"], digests["general"]],
        "student": [digests["teacher"], digests["step_1"]],
        "eval": [digests["student"]],
    }
    (artifact,) = made["student"]
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    assert {"config.json", "model.safetensors", "tokenizer.json", "lineage.json"} <= set(files)
    assert files["model.safetensors"] == "model.safetensors"  # of the run's folder: no copy of it
    general = {entry.path: entry.local_path for entry in used["step_1"][1].manifest.contents}
    weights = chain / "runs/step_1" / general["model.safetensors"]
    assert weights.resolve() == chain / "runs/general/model.safetensors" and ".." not in weights.parts
    metadata = json.loads(artifact.metadata)
    assert metadata["made_from"] == read_json(chain / "runs/student/lineage.json")["made_from"]
    assert metadata["score"] == wandb_files.summary(chain_files["student"])["score"]
    assert "# student" in artifact.description
    waiting = [path for path in (chain / "runs").rglob("wandb/artifacts/**/*") if path.is_file()]
    assert waiting and max(path.stat().st_size for path in waiting) < 50_000  # tables alone


def test_pictures_reach_the_run(chain_files):
    keys = {key for row in wandb_files.history(chain_files["report"]) for key in row}
    assert any(key.startswith("report") for key in keys)
    assert list(chain_files["report"].parent.rglob("media/images/report*.png"))
