import llm_snapshot
import pytest


@pytest.fixture
def services(tmp_path):
    for service, file in (("tail", "listeners.yaml"), ("tail", "clusters.yaml"), ("mesh", "a")):
        path = tmp_path / "services" / service / "live" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{file} one")
        path.chmod(0o400)
    return tmp_path / "services"


@pytest.fixture
def snapshot(services, tmp_path):
    llm_snapshot.take(services, tmp_path / "deploys" / "1" / "before")
    return tmp_path / "deploys" / "1" / "before"


def change(path):
    path.unlink(missing_ok=True)
    path.write_text("two")


def test_snapshot_is_like_what_it_was_taken_of(services, snapshot):
    copy = snapshot / "tail" / "listeners.yaml"
    assert copy.read_text() == "listeners.yaml one"
    assert copy.stat().st_mode & 0o777 == 0o400
    assert snapshot.joinpath("tail").stat().st_mode & 0o777 == 0o700
    assert llm_snapshot.differences(services, snapshot) == {}


def test_differences_name_what_changed(services, snapshot):
    change(services / "tail" / "live" / "listeners.yaml")
    services.joinpath("mesh", "live", "a").unlink()
    assert llm_snapshot.differences(services, snapshot) == {
        "tail": ["listeners.yaml changed"],
        "mesh": ["a changed"],
    }


def test_restore_brings_back_the_files_of_one_service(services, snapshot):
    change(services / "tail" / "live" / "listeners.yaml")
    change(services / "mesh" / "live" / "a")
    assert llm_snapshot.restore(snapshot, services, "tail") == ["listeners.yaml"]
    assert services.joinpath("tail/live/listeners.yaml").read_text() == "listeners.yaml one"
    assert llm_snapshot.differences(services, snapshot) == {"mesh": ["a changed"]}
    assert llm_snapshot.restore(snapshot, services, "tail") == []
    assert sorted(path.name for path in services.joinpath("tail/live").iterdir()) == [
        "clusters.yaml", "listeners.yaml",
    ]  # fmt: skip


def test_take_replaces_an_earlier_one(services, snapshot):
    change(services / "tail" / "live" / "listeners.yaml")
    llm_snapshot.take(services, snapshot)
    assert llm_snapshot.differences(services, snapshot) == {}
    llm_snapshot.remove(snapshot)
    llm_snapshot.remove(snapshot)
    assert not snapshot.exists()


def test_retain_keeps_the_last_ones(tmp_path):
    for number in (2, 9, 10, 11):
        (tmp_path / str(number) / "before").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    llm_snapshot.retain(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"10", "11", "other"}
