import pytest


@pytest.fixture(scope="session")
def exported(workspace, tmp_path_factory):
    """(folder, export.json) of a random teacher, scored on its task."""
    from export_runs import run_export

    folder = tmp_path_factory.mktemp("exported") / "served"
    return folder, run_export(workspace, folder)
