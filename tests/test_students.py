"""Students: named sizes, configs of one's own, layers taken from the teacher."""

import json

import pytest
import torch
from model_folders import weights_of, write_reference_folder
from transformers import BertConfig

from tinybert_dist import models
from tinybert_dist.config import UserError


@pytest.mark.parametrize(("name", "millions"), [("tinybert-4l-312", 14.35), ("tinybert-6l-768", 66.96)])
def test_named_students_have_the_published_sizes(name, millions):
    teacher_config = BertConfig()
    assert models.is_named_student(name)
    student = models.new_student(name, teacher_config=teacher_config, seed=1)
    assert round(models.count_parameters(student) / 1e6, 2) == millions
    weight = student.encoder.layer[0].attention.self.query.weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(student.encoder.layer[0].output.LayerNorm.weight, torch.ones(weight.shape[0]))


def test_new_student_from_config_takes_the_teachers_vocabulary(reference, tmp_path):
    teacher_config = BertConfig(**{**reference[1]["teacher_config"], "pad_token_id": 5, "type_vocab_size": 1})
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**reference[1]["student_config"], "vocab_size": 77}))
    one, same, other = (models.new_student(file, teacher_config=teacher_config, seed=s) for s in (1, 1, 2))
    assert (one.config.vocab_size, one.config.pad_token_id, one.config.type_vocab_size) == (200, 5, 1)
    assert models.weights_fingerprint(one) == models.weights_fingerprint(same)
    assert models.weights_fingerprint(one) != models.weights_fingerprint(other)
    assert not models.is_named_student(str(file))
    with pytest.raises(UserError, match="give one of tinybert-4l-312, tinybert-6l-768"):
        models.new_student("tinybert-5l", teacher_config=teacher_config, seed=1)
    file.write_text(json.dumps({**reference[1]["student_config"], "num_attention_heads": 5}))
    with pytest.raises(UserError, match="hidden_size 32 is no multiple of 5 heads"):
        models.new_student(file, teacher_config=teacher_config, seed=1)


def test_student_cut_from_teacher_layers(reference, tmp_path):
    teacher = models.load_classifier(
        write_reference_folder(
            tmp_path / "t", weights_of(reference, "teacher"), reference[1]["teacher_config"]
        )
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**reference[1]["teacher_config"], "num_hidden_layers": 2}))
    make = {"teacher_config": teacher.config, "seed": 1, "teacher": teacher}
    student = models.new_student(file, init_from_teacher_layers=[2, 4], **make)
    for mine, theirs in ((0, 1), (1, 3)):
        for name, tensor in student.encoder.layer[mine].state_dict().items():
            assert torch.equal(tensor, teacher.bert.encoder.layer[theirs].state_dict()[name])
    assert torch.equal(
        student.embeddings.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight
    )
    assert student.encoder.layer[0].output.dense.weight.data_ptr() != (
        teacher.bert.encoder.layer[1].output.dense.weight.data_ptr()
    )
    for layers in ([1], [1, 5], [0, 2]):
        with pytest.raises(UserError, match="give 2 layers, from 1 to 4"):
            models.new_student(file, init_from_teacher_layers=layers, **make)
    file.write_text(json.dumps(reference[1]["student_config"]))
    with pytest.raises(UserError, match="hidden_size is 32 here and 64 in the teacher"):
        models.new_student(file, init_from_teacher_layers=[1, 3], **make)
