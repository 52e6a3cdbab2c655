import subprocess

import llm_release
import pytest
from salt.exceptions import CommandExecutionError

FIRST, SECOND = ({"node1": {"head": {"1": {"digest": digest}}}} for digest in ("v1:a", "v1:b"))


@pytest.fixture
def releases(tmp_path):
    return llm_release.Releases(tmp_path / "releases")


@pytest.fixture
def add(releases):
    """A function that adds a release which has ended."""

    def add(number, result=llm_release.DONE, hosts=FIRST):
        record = llm_release.begun(number, "deploy", "ada", "abc")
        releases.write(llm_release.ended(record, result, hosts=hosts))

    return add


def test_release_from_its_beginning_to_its_end(releases):
    record = llm_release.begun(1, "deploy", "ada", "abc+changes")
    releases.write(record)
    assert releases.read(1) == record
    assert (record["result"], record["stable"]) == ("running", False)
    releases.write(llm_release.ended(record, llm_release.DONE, hosts=FIRST))
    found = releases.current()
    assert (found["result"], found["stable"], found["hosts"]) == ("done", True, FIRST)
    assert 0 <= found["seconds"] < 60


def test_releases_that_are_not_there(releases):
    assert releases.read(1) is None
    assert releases.all() == []
    assert releases.current() is None


def test_all_come_in_their_order(releases, add):
    for number in (10, 9, 100):
        add(number)
    assert [each["number"] for each in releases.all()] == [9, 10, 100]


def test_abandon_tells_what_was_killed(releases, add):
    add(1)
    releases.write(llm_release.begun(2, "deploy", "ada", ""))
    releases.abandon()
    assert [each["result"] for each in releases.all()] == ["done", "interrupted"]
    assert releases.current()["number"] == 1


def test_target_is_the_last_stable_one_that_was_another(releases, add):
    add(1, hosts=FIRST)
    add(2, hosts=SECOND)
    add(3, llm_release.TAKEN_BACK)
    add(4, hosts=SECOND)
    assert releases.target()["number"] == 1


def test_containers_are_those_to_go_back_to_as_well(releases, add):
    assert releases.containers() == []
    for number, name in enumerate("abb", 1):
        add(number, hosts={"node1": {"head": {"1": {"digest": name, "container": name}}}})
    assert releases.containers() == ["a", "b"]


@pytest.mark.parametrize("ends", [[], ["done"], ["taken back", "done"]])
def test_target_that_there_is_not(releases, add, ends):
    for number, end in enumerate(ends, 1):
        add(number, end)
    with pytest.raises(
        CommandExecutionError,
        match="no stable release before the current one that served anything else",
    ):
        releases.target()


def test_target_by_its_number(releases, add):
    add(1)
    add(2, llm_release.NOT_TAKEN_BACK, SECOND)
    assert releases.target(1)["number"] == 1
    with pytest.raises(CommandExecutionError, match=r"release 2 was not stable \(not taken back\)"):
        releases.target(2)
    assert releases.target(2, force=True)["number"] == 2
    with pytest.raises(CommandExecutionError, match="no release 7 to go to; stable ones: 1"):
        releases.target(7)


def test_commit_of_a_checkout(tmp_path):
    assert llm_release.commit(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    commit = llm_release.commit(tmp_path)
    assert len(commit) == 12
    (tmp_path / "file").write_text("two")
    assert llm_release.commit(tmp_path) == f"{commit}+changes"
