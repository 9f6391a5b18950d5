"""The card of a model folder."""

from tinybert_dist import models


def test_card_has_facts_and_no_machine_path(tmp_path):
    card = models.model_card(
        title="SST-2 student", stage="task_distill", base_model="org/tinybert",
        teacher=str(tmp_path / "my-teacher"),
        language="en", task="SST-2", sizes={"parameters": 14350000}, metrics={"accuracy": 0.91234},
        settings={"learning_rate": 3e-5, "data_dir": str(tmp_path)},
    )  # fmt: skip
    import yaml

    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "org/tinybert" and front["library_name"] == "transformers"
    assert front["language"] == "en"
    for text in ("1909.10351", "| parameters | 14,350,000 |", "| accuracy | 0.9123 |", "my-teacher", "3e-05"):
        assert text in card
    assert str(tmp_path.parent) not in card
