"""Model folders that are hostile, damaged, incomplete or old."""

import json
import os
import pickle

import pytest
import torch
from model_folders import CARD
from safetensors.torch import save_file

from tinybert_dist import models
from tinybert_dist.config import UserError


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "step_5_pytorch_model.bin"])
def test_planted_pickle_is_not_executed(student_folder, tmp_path, name, zipped):
    target, proof = tmp_path / "executed", tmp_path / "proof"
    (student_folder / "pytorch_model.bin").unlink()
    if zipped:
        torch.save({"bert.x": Payload(target)}, student_folder / name)
    else:
        (student_folder / name).write_bytes(pickle.dumps(Payload(target), protocol=2))
    pickle.loads(pickle.dumps(Payload(proof)))  # noqa: S301 - the payload does fire when it is executed
    assert proof.is_dir()
    for load in (models.load_encoder, models.load_classifier, models.load_masked_lm, models.load_projections):
        with pytest.raises(UserError, match=rf"{name}: holds more than tensors.*model.safetensors"):
            load(student_folder)
    assert not target.exists()


def test_planted_remote_code_is_not_loaded(student_folder, tmp_path):
    target = tmp_path / "executed"
    config = json.loads((student_folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (student_folder / "config.json").write_text(json.dumps(config))
    (student_folder / "evil.py").write_text(f"import os; os.mkdir({str(target)!r})\n")
    (student_folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"})
    )
    model = models.load_encoder(student_folder)
    tokenizer = models.load_tokenizer(student_folder)
    (student_folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match="no usable tokenizer"):
        models.load_tokenizer(student_folder)
    models.save_model(model, tokenizer, tmp_path / "out", card=CARD)
    assert not target.exists()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


def test_damaged_files_are_named(student_folder):
    (student_folder / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match=r"model.safetensors: damaged"):
        models.load_encoder(student_folder)
    (student_folder / "model.safetensors").unlink()
    whole = (student_folder / "pytorch_model.bin").read_bytes()
    (student_folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"pytorch_model.bin: .*damaged"):
        models.load_encoder(student_folder)
    (student_folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no weights\. Expected"):
        models.load_encoder(student_folder)


def test_weight_index_cannot_leave_its_folder(student_folder, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    (student_folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../outside.safetensors"}}'
    )
    with pytest.raises(UserError, match=r"'\.\./outside.safetensors', which is not a file in this folder"):
        models.load_encoder(student_folder)


def test_bad_configs_are_named(student_folder):
    file = student_folder / "config.json"
    good = json.loads(file.read_text())
    for text, problem in (
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps({"hidden_size": 3}), "no num_hidden_layers, num_attention_heads"),
        (json.dumps({**good, "architectures": ["RobertaModel"]}), "Add its model_type"),
        (json.dumps({**good, "model_type": "nonsense"}), "nonsense"),
        (json.dumps({**good, "hidden_size": "wide"}), "hidden_size"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem) as caught:
            models.load_config(student_folder)
        assert "config.json" in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=r"config.json: No such file"):
        models.load_config(student_folder)


def test_missing_folder_and_unreachable_hub_name(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        models.load_encoder(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a local folder, and not to be had from the model hub"):
        models.load_encoder("nobody/no-such-model")


def test_old_config_gets_defaults(student_folder):
    config = models.load_config(student_folder, type_vocab_size=3)
    assert (config.model_type, config.pad_token_id, config.layer_norm_eps) == ("bert", 0, 1e-12)
    assert config.type_vocab_size == 3
