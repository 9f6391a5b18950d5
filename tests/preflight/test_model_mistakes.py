"""Seeded mistakes in models and tokenizers: caught in seconds, and the finding says what to change."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import BartConfig, GPT2Config

from tinybert_dist.models import load_tokenizer


def copied(model, folder):
    shutil.copytree(model, folder)
    return folder


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def student_file(workspace, tmp_path, **changes):
    config = json.loads((workspace / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(config | changes))
    return tmp_path / "student.json"


def test_label_names_of_another_task(good, catches, workspace, tmp_path):
    teacher = with_config(
        copied(workspace / "teacher", tmp_path / "teacher"),
        id2label={"0": "negative", "1": "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    options = good("task_distill") | {"teacher_model": teacher}
    catches("task_distill", options, r"labels are negative, positive, the task's are no, yes.*id2label")


def test_another_number_of_labels(good, catches):
    options = good("task_distill")
    for name in ("train", "dev"):
        rows = [f"some text number {i}\t{'abc'[i % 3]}" for i in range(30)]
        (options["data_dir"] / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    catches("task_distill", options, r"classifier has 2 outputs, the task needs 3.*--replace_head")


def test_classifier_as_teacher_of_a_regression(good, catches):
    options = good("task_distill") | {"task_mode": "regression"}
    for name in ("train", "dev"):
        rows = [f"some text number {i}\t{i / 7:.2f}" for i in range(30)]
        (options["data_dir"] / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    catches("task_distill", options, r"classifier has 2 outputs, the task needs 1")
    catches("task_distill", options | {"task_mode": None}, r"fractions.*--task_mode regression")


def test_teacher_that_was_never_fine_tuned(good, catches, general_student):
    options = good("task_distill") | {"teacher_model": general_student}
    catches("task_distill", options, r"no trained classification head.*finetune_teacher")


def test_vocabulary_of_another_model(good, catches, workspace, general_student, tmp_path):
    student = copied(general_student, tmp_path / "student")
    pieces = (workspace / "vocab" / "vocab.txt").read_text().splitlines()
    pieces[10], pieces[11] = pieces[11], pieces[10]
    (student / "tokenizer.json").unlink()
    (student / "vocab.txt").write_text("\n".join(pieces) + "\n")
    options = good("task_distill") | {"student_model": student}
    catches("task_distill", options, r"vocabularies differ.*needs one tokenizer")


def test_student_that_keeps_capitals(good, catches, workspace, general_student, tmp_path):
    student = copied(general_student, tmp_path / "student")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (student / name).unlink()
    shutil.copy(workspace / "vocab" / "vocab.txt", student)
    (student / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    options = good("task_distill") | {"student_model": student}
    catches("task_distill", options, r"keeps capitals, that of .* lower-cases.*correct", "warning")


def test_fewer_embeddings_than_pieces(good, catches, workspace, tmp_path):
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    pieces = (workspace / "vocab" / "vocab.txt").read_text() + "".join(f"more{i}\n" for i in range(50))
    (vocabulary / "vocab.txt").write_text(pieces)
    options = good("finetune_teacher") | {"tokenizer": vocabulary}
    catches("finetune_teacher", options, r"500 embeddings, the tokenizer a vocabulary of 550.*give the voc")


def test_padding_id_of_another_tokenizer(good, catches, workspace, tmp_path):
    teacher = with_config(copied(workspace / "teacher", tmp_path / "teacher"), pad_token_id=7)
    options = good("finetune_teacher") | {"teacher_model": teacher}
    catches("finetune_teacher", options, r"pad_token_id 7 in its config, 0.*Correct config.json", "warning")


def test_more_tokens_than_positions(good, catches):
    options = good("general_distill") | {"max_seq_length": 128}
    catches("general_distill", options, r"--max_seq_length 128 is over the 64 positions.*at most")


def test_width_its_heads_do_not_divide(good, catches, workspace, tmp_path):
    student = student_file(workspace, tmp_path, hidden_size=26)
    options = good("general_distill") | {"student_model": student}
    catches("general_distill", options, r"hidden_size 26 is no multiple of 4|26.*4")


def test_relation_heads_that_do_not_divide(good, catches):
    options = good("general_distill") | {"num_relation_heads": 5}
    catches("general_distill", options, r"--num_relation_heads: 5 .*24 and 48; the divisors of 24 do")


def test_heads_without_common_divisor(good, catches, workspace, tmp_path):
    student = student_file(workspace, tmp_path, hidden_size=25, num_attention_heads=5)
    options = good("general_distill") | {"student_model": student}
    catches("general_distill", options, r"compared over 1 heads.*width", "warning")


def test_layer_that_does_not_exist(good, catches):
    options = good("general_distill") | {"layer_map": "2,9"}
    catches("general_distill", options, r"--layer_map: .*2:9.*outside.*teacher layers 1\.\.4")


def test_student_deeper_than_its_teacher(good, catches, workspace, tmp_path):
    student = student_file(workspace, tmp_path, num_hidden_layers=6)
    options = good("general_distill") | {"student_model": student}
    catches("general_distill", options, r"no deeper than its teacher, got 6 > 4.*explicit pairs")


def test_layers_of_a_wider_teacher(good, catches):
    options = good("general_distill") | {"init_from_teacher_layers": [2, 4]}
    catches("general_distill", options, r"--init_from_teacher_layers: hidden_size is 24 here and 48")


def test_all_losses_off(good, catches):
    off = dict.fromkeys(("attention_weight", "hidden_weight", "embedding_weight"), "0")
    options = good("general_distill") | off
    catches("general_distill", options, r"all losses are switched off; give --attention_weight")


def test_student_without_projections(good, catches, general_student, tmp_path):
    student = copied(general_student, tmp_path / "student")
    (student / "projections.safetensors").unlink()
    options = good("task_distill") | {"student_model": student}
    catches("task_distill", options, r"no projections.*Give the output folder of general_distill", "warning")


def test_student_of_another_teacher(good, catches, workspace, general_student, tmp_path):
    student = copied(general_student, tmp_path / "student")
    projections = {"fit_dense.weight": torch.zeros(96, 24), "fit_dense.bias": torch.zeros(96)}
    save_file(projections, student / "projections.safetensors")
    options = good("task_distill") | {"student_model": student}
    catches("task_distill", options, r"width 96, the teacher's is 48.*general_distill --teacher", "warning")


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_teacher_of_another_kind(good, catches, workspace, tmp_path, kind):
    folder = tmp_path / "teacher"
    (GPT2Config(n_layer=2) if kind == "decoder" else BartConfig(encoder_layers=2)).save_pretrained(folder)
    load_tokenizer(workspace / "teacher").save_pretrained(folder)
    options = good("general_distill") | {"teacher_model": folder}
    catches("general_distill", options, r"is (no encoder|an encoder-decoder).*encoders such as BERT")


def test_weights_cut_short(good, catches, workspace, tmp_path):
    teacher = copied(workspace / "teacher", tmp_path / "teacher")
    content = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(content[: len(content) // 2])
    options = good("general_distill") | {"teacher_model": teacher}
    catches("general_distill", options, r"model\.safetensors: damaged.*download it again")


def test_weights_that_are_a_git_lfs_pointer(good, catches, workspace, tmp_path):
    teacher = copied(workspace / "teacher", tmp_path / "teacher")
    (teacher / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    options = good("general_distill") | {"teacher_model": teacher}
    catches("general_distill", options, r"pointer of Git LFS.*git lfs pull")


def test_config_of_other_weights(good, catches, workspace, tmp_path):
    teacher = with_config(copied(workspace / "teacher", tmp_path / "teacher"), num_hidden_layers=6)
    options = good("general_distill") | {"teacher_model": teacher}
    catches("general_distill", options, r"weights of 4 layers, by config\.json 6.*config\.json of these")


def test_hub_name_without_the_hub(good, catches):
    options = good("general_distill") | {"teacher_model": "bert-base-uncased"}
    catches("general_distill", options, r"not in the cache.*HF_HUB_OFFLINE is set.*hf download bert-base-unc")


def test_mistyped_folder_that_looks_like_a_hub_name(good, catches, workspace, monkeypatch):
    monkeypatch.chdir(workspace.parent)
    options = good("general_distill") | {"teacher_model": f"{workspace.name}/techer"}
    catches("general_distill", options, rf"Did you mean {workspace.name}/teacher\?")


def test_fine_tuned_model_to_augment_with(good, catches, workspace):
    options = good("augment") | {"pretrained_bert_model": workspace / "teacher"}
    catches("augment", options, r"no trained masked-LM head.*Give the pre-trained model")


def test_model_to_score_without_a_head(good, catches, general_student):
    options = good("evaluate") | {"model": general_student}
    catches("evaluate", options, r"no trained classification head.*finetune_teacher")


def test_students_weights_cut_short(good, catches, general_student, tmp_path):
    student = copied(general_student, tmp_path / "student")
    content = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(content[: len(content) // 2])
    found = catches(
        "task_distill", good("task_distill") | {"student_model": student}, r"student/model.*damaged.*again"
    )
    assert found.check == "student"
