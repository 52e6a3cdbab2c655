import contextlib

import llm_spec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from salt.exceptions import SaltInvocationError

SPEC = {"service": "head", "image": "llm/head:1"}


def parts(image_id="sha256:1", **keys):
    return llm_spec.parts(llm_spec.completed(SPEC | keys), image_id)


def test_completed_fills_in_defaults_in_canonical_form():
    spec = llm_spec.completed(SPEC | {"memory": "1g", "stop_timeout": "1m"})
    assert spec["memory"] == 1024**3
    assert spec["stop_timeout"] == 60
    assert spec["tmpfs"] == {"/tmp": 64 * 1024**2}
    assert spec["log"] == {"max_size": 10 * 1024**2, "max_files": 3}
    assert llm_spec.completed(spec) == spec


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("restart_polcy", "always", 'unknown key "restart_polcy"'),
        ("memmory", "1g", 'did you mean "memory"?'),
        ("memory", 512, "memory: expected a size of at least 6m"),
        ("memory", "512MB ", "memory: expected a size"),
        ("memory", True, "memory: expected a size"),
        ("cpus", 0, "cpus: expected a number above 0"),
        ("cpus", "half", "cpus: expected a number above 0"),
        ("pids", 0, "pids: expected"),
        ("user", 10005, "user: expected a user in quotes"),
        ("environment", {"DEBUG": True}, "environment: expected a mapping of strings"),
        ("environment", ["A=1"], "environment: expected a mapping of strings"),
        ("command", "sleep 1", "command: expected a list of words"),
        ("command", ["sleep", 1], "command: expected a list of words"),
        ("mounts", [{"source": "a", "target": "/b"}], "mounts: expected a list of {source: /"),
        ("mounts", [{"source": "/a/../b", "target": "/b"}], "mounts: expected"),
        ("mounts", [{"source": "/a", "target": "/b", "ro": True}], "mounts: expected"),
        ("addresses", "172.30.0.0/99", "addresses: expected a block"),
        ("strategy", "brave", "strategy: expected start-first or stop-first"),
        ("gpus", "some", "gpus: expected a number, or all"),
        ("replica", "3", "replica: expected a number from 1 on"),
        ("service", "x", "service: expected a name"),
        ("image", None, "image: expected the reference of an image"),
        ("health", {"min_healthy": 5, "healthy_deadline": 5}, "health: expected"),
        ("health", {"port": 80}, "health: expected"),
        ("stop_timeout", "soon", "stop_timeout: expected a time"),
        ("smoke_test", "head.key", "smoke_test: expected {secret: ..., model: ...}"),
        ("smoke_test", {"secret": "head.key"}, "smoke_test: expected {secret"),
        ("log", {"max_size": "10m", "files": 1}, "log: expected"),
        ("when_tight", "hope", "when_tight: expected refuse or stop-first"),
        ("version", 1.10, "version: expected a version in quotes"),
        ("room", {"memory": "1g"}, "room: expected {memory: bytes"),
        ("room", {"taken": {"head": -1}}, "room: expected {memory: bytes"),
    ],
)
def test_completed_refuses(key, value, said):
    with pytest.raises(SaltInvocationError) as err:
        llm_spec.completed(SPEC | {key: value})
    assert said in str(err.value)


def test_completed_names_every_mistake():
    with pytest.raises(SaltInvocationError) as err:
        llm_spec.completed(SPEC | {"memory": 1, "cpus": -1, "colour": "red"})
    assert len(str(err.value).splitlines()) == 3


@given(
    st.dictionaries(
        st.sampled_from(sorted(llm_spec.DEFAULTS)) | st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
            max_leaves=4,
        ),
    )
)
def test_completed_never_ends_in_a_traceback(spec):
    with contextlib.suppress(SaltInvocationError):
        llm_spec.completed(spec)


def test_digest_is_the_same_for_the_same():
    spec = SPEC | {"environment": {"A": "1", "B": "2"}}
    again = {"environment": {"B": "2", "A": "1"}, "image": "llm/head:1", "service": "head"}
    first, second = (
        llm_spec.digest(llm_spec.parts(llm_spec.completed(each), "sha256:1"))
        for each in (spec, again)
    )
    assert first == second
    assert first.startswith("v1:")


def test_digest_of_version_1_stays_what_it_is():
    """A change here replaces every container there is: it wants a new version."""
    assert llm_spec.digest(parts()) == (
        "v1:e069fc846eda4ea75834f37e3566ecfe2b3672fe429b9bc3b1c81fa2e52f7830"
    )


@pytest.mark.parametrize("key", sorted(set(llm_spec.ROLLOUT) | {"replica"}))
def test_digest_does_not_depend_on_how_it_is_rolled_out(key):
    other = {
        "health": {"check": {"http": "/"}},
        "strategy": "stop-first",
        "drain_timeout": 1,
        "progress_deadline": 1,
        "routed": True,
        "keep": 3,
        "edited": ["config.yaml"],
        "pinned": {"digest": "v1:0", "why": "so it is"},
        "smoke_test": {"secret": "head.key", "model": "tiny"},
        "version": "2",
        "when_tight": "stop-first",
        "room": {"memory": 1, "taken": {"cache": 1}},
        "replica": 2,
    }
    assert llm_spec.digest(parts(**{key: other[key]})) == llm_spec.digest(parts())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"memory": "1g"}, {"memory": "2g"}, ["memory 1g → 2g"]),
        ({"cpus": 1}, {"cpus": 0.5}, ["cpus 1 → 0.5"]),
        ({"image": "llm/head:1"}, {"image": "llm/head:2"}, ["image llm/head:1 → llm/head:2"]),
        ({}, {"files": {"a.yaml": "1"}}, ["file a.yaml added"]),
        ({"files": {"a": "1"}}, {"files": {"a": "2"}}, ["file a changed"]),
        ({"secrets": {"a.b": "1"}}, {"secrets": {"a.b": "2"}}, ["secret a.b changed"]),
        ({"secrets": {"a.b": "1"}}, {}, ["secret a.b removed"]),
        ({"environment": {"A": "1"}}, {"environment": {"A": "2"}}, ["environment A changed"]),
        ({"command": ["a"]}, {"command": ["b"]}, ["command changed"]),
        ({"gpus": 0}, {"gpus": "all"}, ["gpus 0 → all"]),
        (
            {"mounts": [{"source": "/a/1", "target": "/b"}], "files": {"c": "1"}},
            {"mounts": [{"source": "/a/2", "target": "/b"}], "files": {"c": "2"}},
            ["file c changed"],
        ),
        (
            {"mounts": [{"source": "/a/1", "target": "/b"}]},
            {"mounts": [{"source": "/a/2", "target": "/b"}]},
            ["mounts changed"],
        ),
        ({"stop_timeout": 1}, {"stop_timeout": 2}, ["stop timeout changed"]),
        ({}, {}, []),
    ],
)
def test_causes(before, after, said):
    assert llm_spec.causes(parts(**before), parts(**after)) == said


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        (("1.2", "1.3"), "image 1.2 → 1.3"),
        (("1.2", "1.2"), "image llm/head:1 → llm/head:2, both 1.2"),
        (("", "1.3"), "image llm/head:1 → llm/head:2"),
        (("1.2", ""), "image llm/head:1 → llm/head:2"),
    ],
)
def test_causes_of_another_image_name_the_versions_that_people_know(versions, said):
    before, after = parts(image="llm/head:1"), parts(image="llm/head:2")
    assert llm_spec.causes(before, after, versions) == [said]


def test_causes_of_an_image_made_anew():
    said = llm_spec.causes(parts("sha256:1"), parts("sha256:2"))
    assert said == ["image llm/head:1 was made anew"]


def test_causes_never_show_what_the_environment_holds():
    text = str(llm_spec.causes(parts(environment={"A": "x1"}), parts(environment={"A": "x2"})))
    assert "x1" not in text
    assert "x2" not in text


def test_body_locks_the_container_down():
    spec = llm_spec.completed(SPEC | {"capabilities": ["NET_BIND_SERVICE"], "memory": "1g"})
    body = llm_spec.body(spec, "llm-head-1-g1", "llm/head:1", {"llm.site": "llm"}, "172.30.0.80")
    host = body["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 1024**3
    assert host["NanoCpus"] == 250_000_000
    assert host["PidsLimit"] == 256
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == ["NET_BIND_SERVICE"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["RestartPolicy"] == {"Name": "always"}
    assert host["LogConfig"]["Config"] == {"max-size": "10485760", "max-file": "3"}
    assert host["Init"] is True
    assert "PortBindings" not in host
    assert body["User"] == "65534:65534"
    endpoint = body["NetworkingConfig"]["EndpointsConfig"]["bridge"]
    assert endpoint["IPAMConfig"] == {"IPv4Address": "172.30.0.80"}


@pytest.mark.parametrize(
    ("gpus", "requests"),
    [
        (0, []),
        (2, [{"Driver": "", "Count": 2, "Capabilities": [["gpu"]]}]),
        ("all", [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]),
    ],
)
def test_body_asks_for_gpus(gpus, requests):
    spec = llm_spec.completed(SPEC | {"gpus": gpus})
    assert llm_spec.body(spec, "a", "b", {})["HostConfig"]["DeviceRequests"] == requests


def test_body_passes_devices_and_mounts_on():
    spec = llm_spec.completed(
        SPEC
        | {
            "devices": ["/dev/dri", "/dev/a:/dev/b:r"],
            "mounts": [{"source": "/run/{name}", "target": "/run/llm", "read_only": False}],
            "volumes": {"llm-cache-data": "/data"},
        }
    )
    host = llm_spec.body(spec, "llm-head-1-g1", "b", {})["HostConfig"]
    assert host["Devices"] == [
        {"PathOnHost": "/dev/dri", "PathInContainer": "/dev/dri", "CgroupPermissions": "rwm"},
        {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"},
    ]
    bind, volume = host["Mounts"]
    assert bind["Source"] == "/run/llm-head-1-g1"
    assert bind["ReadOnly"] is False
    assert volume == {"Type": "volume", "Source": "llm-cache-data", "Target": "/data"}
    assert llm_spec.folders(spec, "llm-head-1-g1") == ["/run/llm-head-1-g1"]
