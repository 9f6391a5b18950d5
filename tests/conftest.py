import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and task data beside the checkout, or TINYBERT_TEST_DATA; the test is skipped without them."""
    folder = Path(os.environ.get("TINYBERT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets ({folder.name}/ beside the checkout or TINYBERT_TEST_DATA)")
    return folder
