import llm_record
import pytest
from salt.exceptions import CommandExecutionError


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "new" / "record.json"
    assert llm_record.read(path) is None
    llm_record.write(path, {"a": 1})
    llm_record.write(path, {"a": [2]})
    assert llm_record.read(path) == {"a": [2]}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize("break_it", [lambda path: path.write_text("{"), lambda path: path.mkdir()])
def test_read_says_which_file_is_broken(tmp_path, break_it):
    break_it(tmp_path / "record.json")
    with pytest.raises(CommandExecutionError, match=r"record\.json: "):
        llm_record.read(tmp_path / "record.json")
