import llm_knob
import pytest
import yaml
from salt.exceptions import CommandExecutionError, SaltInvocationError

TEXT = """\
# A laptop.
llm:
  services:
    cache: {memory: 128m, cpus: 0.5}   # small
    head: {replicas: 2}
  log_level: info
"""


@pytest.fixture
def file(tmp_path):
    """The file of an environment."""
    path = tmp_path / "environments" / "dev.sls"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def test_with_knobs_leaves_the_rest_as_it_is():
    found = llm_knob.with_knobs(TEXT, {"head": {"replicas": 3}})
    assert found == TEXT.replace("replicas: 2", "replicas: 3")


def test_with_knobs_of_a_service_that_does_not_stand_there():
    found = llm_knob.with_knobs(TEXT, {"tail": {"version": "1.10"}})
    services = yaml.safe_load(found)["llm"]["services"]
    assert services["tail"] == {"version": "1.10"}
    assert "# small" in found


def test_with_knobs_of_a_file_without_services():
    found = llm_knob.with_knobs("llm: {log_level: info}\n", {"tail": {"version": "on"}})
    assert yaml.safe_load(found)["llm"]["services"] == {"tail": {"version": "on"}}


@pytest.mark.parametrize("text", ["llm: [", "- 1\n", "other: {}\n", ""])
def test_with_knobs_of_a_file_that_is_wrong(text):
    with pytest.raises(CommandExecutionError, match="see llm.check"):
        llm_knob.with_knobs(text, {"tail": {"version": "1"}})


@pytest.mark.parametrize("keep", [True, False])
def test_turned_stays_when_it_is_kept(file, tmp_path, keep):
    file.chmod(0o640)
    with llm_knob.turned(tmp_path, "dev", {"head": {"replicas": 3}}) as turned:
        assert turned["file"] == "pillar/environments/dev.sls"
        assert "replicas: 3" in file.read_text()
        if keep:
            turned["keep"]()
    assert ("replicas: 3" in file.read_text()) is keep
    assert keep or file.read_text() == TEXT
    assert file.stat().st_mode & 0o777 == 0o640
    assert list(file.parent.iterdir()) == [file]


def test_turned_goes_back_after_an_interruption(file, tmp_path):
    knobs = {"head": {"replicas": 3}}
    with pytest.raises(KeyboardInterrupt), llm_knob.turned(tmp_path, "dev", knobs):
        raise KeyboardInterrupt
    assert file.read_text() == TEXT


def test_turned_without_knobs_needs_no_file(tmp_path):
    with llm_knob.turned(tmp_path, "dev", {}):
        pass


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"head": {"replicas": 99}}, "^head.replicas: found 99; expected at most 7$"),
        ({"cache": {"replicas": 2}}, "^cache.replicas: found 2; expected 1: two "),
        (
            {"head": {"image": "h@sha256:ab"}, "tail": {"replicas": 8}},
            "^head.image: .*\ntail.replicas: .*$",
        ),
    ],
)
def test_check_tells_mistakes_without_a_file(pillar, knobs, words):
    with pytest.raises(SaltInvocationError, match=words):
        llm_knob.check(knobs, pillar)


def test_check_lets_pass_what_is_sound(pillar):
    llm_knob.check({"head": {"replicas": 2}}, pillar)
    llm_knob.check({}, pillar)


def test_versions():
    text = "head:1.2, cache:host:5000/cache@sha256:ab"
    assert llm_knob.versions(text, ["head", "cache"]) == {
        "head": {"version": "1.2"},
        "cache": {"image": "host:5000/cache@sha256:ab"},
    }
    assert llm_knob.versions(None, []) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head", 'version: found "head", expected SERVICE:VERSION'),
        ("head:", 'version: found "head:", expected'),
        ("haed:1", 'unknown service "haed"; did you mean "head"'),
    ],
)
def test_versions_that_are_wrong(text, words):
    with pytest.raises(SaltInvocationError, match=words):
        llm_knob.versions(text, ["head", "cache"])
