import llm_record
import pytest
from salt.exceptions import CommandExecutionError


def test_record_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "deploy.json"
    assert llm_record.read(path) is None
    for number in (1, 2):
        llm_record.write(path, {"number": number})
        assert llm_record.read(path) == {"number": number}
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\0"])
def test_record_that_is_damaged(tmp_path, content):
    path = tmp_path / "deploy.json"
    path.write_bytes(content)
    with pytest.raises(CommandExecutionError, match=f"{path} is damaged: .*; remove it"):
        llm_record.read(path)


def test_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(CommandExecutionError, match="Is a directory"):
        llm_record.read(tmp_path)
