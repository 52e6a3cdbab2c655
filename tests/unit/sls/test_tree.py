"""
What the folders hold, whatever is in the files.
"""

import pathlib

import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
SERVICES = list(yaml.safe_load((REPOSITORY / "pillar/services.sls").read_text())["llm"]["services"])
TRUTHS = {"init.sls", "configured.sls", "running.sls", "healthy.sls", "absent.sls"}


@pytest.mark.parametrize("service", SERVICES)
def test_service_has_its_truths(service):
    assert {path.name for path in (REPOSITORY / "salt" / service).iterdir()} >= TRUTHS


def test_folder_with_those_truths_is_a_service():
    folders = {path.parent.name for path in (REPOSITORY / "salt").glob("*/healthy.sls")}
    assert folders == set(SERVICES)


def test_links_lead_to_the_code_alone():
    links = [path for path in (REPOSITORY / "salt").rglob("*") if path.is_symlink()]
    found = {path.relative_to(REPOSITORY).as_posix(): path.readlink().as_posix() for path in links}
    assert found == {
        "salt/_modules": "../_modules",
        "salt/_states": "../_states",
        "salt/_utils": "../_utils",
        "salt/orch": "../orch",
    }


def test_code_holds_no_links():
    code = ("_modules", "_states", "_utils", "_runners", "orch")
    paths = [path for folder in code for path in (REPOSITORY / folder).rglob("*")]
    assert [path for path in paths if path.is_symlink()] == []


def test_salt_is_no_package():
    assert list((REPOSITORY / "salt").rglob("__init__.py")) == []
    assert not (REPOSITORY / "_modules" / "__init__.py").exists()
