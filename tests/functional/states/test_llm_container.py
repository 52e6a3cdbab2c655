"""
Containers on the real engine: every way to come off the declared, and the way back.
"""

import os
import pathlib
import socket
from unittest.mock import patch

import llm_engine
import pytest

from tests.support.engine import Interrupted
from tests.support.operator import until

pytestmark = pytest.mark.docker

SLEEP = ["sleep", "3600"]


@pytest.fixture
def spec(image, network):
    """The spec of a small container."""
    return {
        "image": image,
        "network": network,
        "memory": "32m",
        "command": SLEEP,
        "stop_timeout": 1,
        "health": {"min_healthy": 0.3, "healthy_deadline": 5},
    }


@pytest.fixture
def run(site, spec):
    """A function that applies the state of service ``web``, with keys in place of the spec's."""

    def run_(test=False, **keys):
        return site.state("llm_container.running", "web", test=test, **{**spec, **keys})

    return run_


def sentences(ret):
    return [sentence for each in ret["changes"].values() for sentence in each]


def apply(run, **keys):
    """Apply, having looked in test mode that it is foretold and nothing is touched."""
    foretold = run(test=True, **keys)
    ret = run(**keys)
    assert ret["result"] is True, ret["comment"]
    assert foretold["changes"] == ret["changes"]
    assert foretold["result"] is (None if ret["changes"] else True)
    again = run(**keys)
    assert again["result"] is True
    assert again["changes"] == {}
    return ret


def test_running_creates_it_locked_down(run, site):
    ret = apply(run, read_only=True)
    name = f"{site.name}-web-1-g1"
    assert ret["changes"] == {name: ["create: there is none"]}
    found = site.engine.inspect(name)
    host = found["HostConfig"]
    assert found["State"]["Running"]
    assert found["Config"]["User"] == "65534:65534"
    assert host["Memory"] == 32 * 1024**2
    assert host["NanoCpus"] == 250_000_000
    assert host["PidsLimit"] == 256
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["RestartPolicy"]["Name"] == "always"
    assert host["LogConfig"]["Config"] == {"max-size": "10485760", "max-file": "3"}
    assert not host["PortBindings"]


def test_running_in_test_mode_is_silent(run, site, other_image):
    with site.silence():
        assert run(test=True)["result"] is None
    run()
    with site.silence():
        assert run(test=True, image=other_image)["result"] is None
        assert run(test=True)["result"] is True
        assert site.state("llm_container.absent", "web", test=True)["result"] is None


def test_running_again_is_silent(run, site):
    run()
    with site.silence():
        assert run()["changes"] == {}


@pytest.mark.parametrize("when_tight", ["refuse", "stop-first"])
def test_running_where_memory_does_not_allow_two_generations(run, site, when_tight):
    apply(run)
    name, mib = f"{site.name}-web-1-g1", 1024**2
    keys = {"memory": "48m", "when_tight": when_tight, "stop_timeout": 1}
    tight = keys | {"room": {"memory": 70 * mib, "taken": {"other": 0}}}
    with site.silence():
        foretold = run(test=True, **tight)
    if when_tight == "refuse":
        with site.silence():
            ret = run(**tight)
        assert ret["result"] is foretold["result"] is False
        assert "memory lacks 10m for both at once; lower limits" in ret["comment"]
        assert site.containers() == {name: "running"}
        tight["room"]["memory"] = 80 * mib
    ret = apply(run, **tight)
    (sentence,) = sentences(ret)
    assert sentence.endswith("memory lacks 10m for both at once") is (when_tight == "stop-first")
    times = [site.engine.inspect(f"{site.name}-web-1-g{number}")["State"] for number in (1, 2)]
    first_ended = times[0]["FinishedAt"] < times[1]["StartedAt"]
    assert first_ended is (when_tight == "stop-first")


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ("stop", "start: it had stopped (exit code 143)"),
        ("kill", "start: it was killed"),
        ("remove", "create: there is none"),
        ("limits", "update: memory 16m → 32m, swap 16m → 32m, cpus 0.1 → 0.25"),
        ("policy", "update: restart policy no → always"),
        ("cpuset", "replace: {}: CPU set set by hand"),
        ("rename", "rename: it was called {}-by-hand"),
        ("pause", "resume: it was paused"),
        ("disconnect", "replace: {}: not connected to network {}-net"),
    ],
)
def test_running_mends(run, site, network, drift, said):
    run()
    name, engine = f"{site.name}-web-1-g1", site.engine
    match drift:
        case "stop":
            engine.stop(name, 1)
        case "kill":
            engine.request("POST", f"/containers/{name}/kill")
        case "remove":
            engine.remove(name)
        case "limits":
            small = {"Memory": 16 * 1024**2, "MemorySwap": 16 * 1024**2, "NanoCpus": 10**8}
            engine.update(name, small)
        case "policy":
            engine.update(name, {"RestartPolicy": {"Name": "no"}})
        case "cpuset":
            engine.update(name, {"CpusetCpus": "0"})
        case "rename":
            engine.rename(name, f"{site.name}-by-hand")
            name = site.name
        case "pause":
            engine.request("POST", f"/containers/{name}/pause")
        case "disconnect":
            engine.request(
                "POST", f"/networks/{network}/disconnect", {"Container": name, "Force": True}
            )
    assert sentences(apply(run)) == [said.format(name, site.name)]
    assert list(site.containers().values()).count("running") == 1


def test_running_mends_a_connection_that_was_made_by_hand(run, site, network):
    block = site.subnet.replace(".0/24", ".64/28")
    keys = {"addresses": block, "aliases": ["web"]}
    run(**keys)
    first, second = (f"{site.name}-web-1-g{number}" for number in (1, 2))
    site.engine.request(
        "POST", f"/networks/{network}/disconnect", {"Container": first, "Force": True}
    )
    site.engine.request("POST", f"/networks/{network}/connect", {"Container": first})
    assert sentences(apply(run, **keys)) == [
        f"replace: {first}: its address on network {network} is not of {block}, "
        f"network {network} does not know it as web"
    ]
    site.engine.stop(second, 1)
    (said,) = sentences(apply(run, **keys))
    assert said.startswith("start: it had stopped")


def test_running_does_not_follow_a_moved_tag(run, site, image, make_image):
    tag = make_image(f"llm-test-{os.getpid()}/moved:1", "first")
    run(image=tag)
    before = site.engine.inspect(f"{site.name}-web-1-g1")["Image"]
    make_image(tag, "second")
    assert site.engine.image(tag)["Id"] != before
    assert run(image=tag)["changes"] == {}
    run(image=tag, memory="48m")
    assert site.engine.inspect(f"{site.name}-web-1-g2")["Image"] == before


def test_running_after_the_network_was_made_anew(run, site, network):
    run()
    name = f"{site.name}-web-1-g1"
    site.engine.stop(name, 1)
    site.engine.remove_network(network)
    site.state("llm_network.present", network, subnet=site.subnet)
    ret = apply(run)
    assert sentences(ret) == [f"replace: {name}: network {network} was made anew"]


def test_running_replaces_and_goes_back_by_a_start(run, site, image, other_image):
    run()
    ret = apply(run, image=other_image, memory="48m")
    first, second = (f"{site.name}-web-1-g{number}" for number in (1, 2))
    assert ret["changes"] == {
        second: [f"replace: {first}: image {image} → {other_image}, memory 32m → 48m"]
    }
    assert site.containers() == {first: "exited", second: "running"}
    assert site.engine.inspect(first)["HostConfig"]["RestartPolicy"]["Name"] == "no"
    before = site.engine.inspect(first)["Id"]
    apply(run)
    assert site.containers() == {first: "running", second: "exited"}
    assert site.engine.inspect(first)["Id"] == before


def test_running_keeps_only_the_last_one_parked(run, site):
    for memory in ("32m", "40m", "48m"):
        apply(run, memory=memory)
    second, third = (f"{site.name}-web-1-g{number}" for number in (2, 3))
    assert site.containers() == {second: "exited", third: "running"}


@pytest.mark.parametrize("strategy", ["start-first", "stop-first"])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"command": ["/none/such"]}, "exec /none/such failed: No such file or directory"),
        ({"command": ["sh", "-c", "echo last words; exit 3"]}, "last words"),
        ({"command": ["sh", "-c", "sleep 0.5; exit 3"]}, "exit code 3"),
        (
            {"command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M"]},
            "out of memory (limit 32m)",
        ),
        ({"health": {"check": {"http": "/", "port": 80}, "healthy_deadline": 2.5}}, "refused"),
    ],
    ids=["no binary", "exits", "crash loop", "memory", "unhealthy"],
)
def test_running_takes_back_what_is_not_well(run, site, strategy, bad, said):
    run(strategy=strategy)
    name = f"{site.name}-web-1-g1"
    before = site.engine.inspect(name)
    patient = {"health": {"min_healthy": 1.5, "healthy_deadline": 10}}
    ret = run(strategy=strategy, environment={"NEW": "1"}, **(patient | bad))
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert said in ret["comment"]
    assert f"{name} serves as before" in ret["comment"]
    assert site.containers() == {name: "running"}
    after = site.engine.inspect(name)
    assert after["Id"] == before["Id"]
    assert after["HostConfig"]["RestartPolicy"]["Name"] == "always"
    if strategy == "start-first":
        assert after["State"]["StartedAt"] == before["State"]["StartedAt"]
    assert run(strategy=strategy)["changes"] == {}


def test_running_takes_back_what_finds_its_port_taken(run, site, image):
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        run(network="host")
        ret = run(
            network="host",
            command=["httpd", "-f", "-p", f"127.0.0.1:{port}"],
            health={"min_healthy": 1.5, "healthy_deadline": 10},
        )
    assert ret["result"] is False
    assert "Address already in use" in ret["comment"]
    assert site.containers() == {f"{site.name}-web-1-g1": "running"}


def test_running_the_first_time_leaves_nothing_that_cannot_start(run, site):
    ret = run(addresses="10.0.0.0/28")  # which is not of the network
    assert ret["result"] is False
    assert ret["comment"].endswith("It was taken back: nothing is left of it")
    assert site.containers() == {}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image": "llm-test/none:1"}, "image llm-test/none:1 is not on this host"),
        ({"network": "none-such"}, "network none-such does not exist"),
        ({"mounts": [{"source": "/none/such", "target": "/a"}]}, "/none/such, which"),
    ],
)
def test_running_without_what_it_needs_changes_nothing(run, site, keys, said):
    run()
    with site.silence():
        ret = run(**keys)
    assert ret["result"] is False
    assert said in ret["comment"]
    assert run(test=True, **keys)["result"] is None
    assert not pathlib.Path("/none/such").exists()


def test_running_leaves_a_foreign_container_alone(run, site, image):
    name = f"{site.name}-web-1-g1"
    site.engine.create(name, {"Image": image})
    ret = run()
    assert ret["result"] is False
    assert ret["comment"] == (
        f"Container {name} is not ours and has the name that we need: rename or remove it"
    )
    assert site.containers() == {name: "created"}


def test_running_without_an_engine_names_host_and_socket(run, site):
    site.opts = {"docker.url": "unix:///none/such.sock"}
    site.loaded.clear()
    ret = run()
    assert ret["result"] is False
    assert "does not answer at /none/such.sock: No such file or directory" in ret["comment"]
    assert len(ret["comment"].splitlines()) == 1


def test_running_fails_when_the_engine_refuses_a_device(run, site):
    ret = run(gpus=1)
    if ret["result"]:
        pytest.skip("this machine has a GPU")
    assert "could not select device driver" in ret["comment"]
    assert site.containers() == {}


def test_running_gives_folders_and_volumes_to_the_user(run, site, tmp_path):
    mount = {"source": f"{tmp_path}/run/{{name}}", "target": "/run/llm", "read_only": False}
    volume = f"{site.name}-data"
    apply(
        run,
        user="10005:10005",
        mounts=[mount],
        volumes={volume: "/mnt"},
        command=["sh", "-c", "touch /run/llm/a /mnt/b && sleep 3600"],
    )
    name = f"{site.name}-web-1-g1"
    assert (tmp_path / "run" / name).stat().st_uid == 10005
    labels = {"llm.site": site.name, "llm.service": "web"}
    assert [each["Labels"] for each in site.engine.volumes() if each["Name"] == volume] == [labels]
    assert site.call("llm_container.list", "web")[0]["restarts"] == 0


def test_running_gives_addresses_from_the_block(site, spec):
    block = site.subnet.replace(".0/24", ".64/28")
    replicas = [{**spec, "addresses": block, "replica": number} for number in (1, 2)]
    ret = site.state("llm_container.running", "web", spec=replicas)
    assert ret["result"] is True, ret["comment"]
    addresses = [each["address"] for each in site.call("llm_container.list", "web")]
    assert addresses == [block.replace(".64/28", f".{number}") for number in (64, 65)]
    ret = site.state("llm_container.running", "web", spec=replicas[:1])
    assert ret["changes"] == {f"{site.name}-web-2-g1": ["park: only 1 wanted"]}
    first, second = (f"{site.name}-web-{number}-g1" for number in (1, 2))
    assert site.containers() == {first: "running", second: "exited"}


@pytest.mark.parametrize("strategy", ["start-first", "stop-first"])
def test_running_converges_after_an_interruption_anywhere(run, site, strategy):
    real, changes = llm_engine.Engine.request, 0
    for after in range(20):
        changes = 0

        def request(self, method, path, body=None, timeout=60, after=after, **query):
            nonlocal changes
            if method != "GET":
                if changes >= after:
                    raise Interrupted
                changes += 1
            return real(self, method, path, body, timeout, **query)

        wanted = {"strategy": strategy, "memory": f"{32 + 4 * after}m"}
        with patch.object(llm_engine.Engine, "request", request):
            try:
                run(**wanted)
                interrupted = False
            except Interrupted:
                interrupted = True
        ret = run(**wanted)
        assert ret["result"] is True, ret["comment"]
        states = site.containers()
        assert list(states.values()).count("running") == 1, (after, states)
        assert len(states) <= 2, (after, states)
        assert run(**wanted)["changes"] == {}
        if not interrupted and after:
            break
    assert after >= 5


def test_running_starts_many_side_by_side(site, spec):
    names = [f"bench-{number}" for number in range(3)]
    containers = {name: {"environment": {"INDEX": name}} for name in names}
    ret = site.state("llm_container.running", "all", containers=containers, **spec)
    assert ret["result"] is True, ret["comment"]
    assert set(site.containers()) == {f"{site.name}-{name}-1-g1" for name in names}
    again = site.state("llm_container.running", "all", containers=containers, **spec)
    assert again["changes"] == {}


def test_absent_removes_all_of_it_and_nothing_else(run, site, image):
    volume = f"{site.name}-data"
    run(volumes={volume: "/data"})
    run(volumes={volume: "/data"}, memory="48m")
    foreign = f"{site.name}-foreign"
    site.engine.create(foreign, {"Image": image})
    assert site.state("llm_container.absent", "web")["result"] is True
    assert site.containers() == {foreign: "created"}
    assert volume in [each["Name"] for each in site.engine.volumes()]
    ret = site.state("llm_container.absent", "web", volumes=True)
    assert ret["changes"] == {f"volume {volume}": ["remove: it is not wanted"]}
    assert volume not in [each["Name"] for each in site.engine.volumes()]
    assert site.state("llm_container.absent", "web", volumes=True)["changes"] == {}


def test_logs_and_stats(run, site):
    run(command=["sh", "-c", "echo fine; echo an error >&2; exec sleep 3600"])
    name = f"{site.name}-web-1-g1"
    until(lambda: len(site.call("llm_container.logs", "web")[name]) == 2, seconds=10)
    assert sorted(site.call("llm_container.logs", "web")[name]) == ["an error", "fine"]
    assert site.call("llm_container.logs", "web", errors=True) == {name: ["an error"]}
    used = site.call("llm_container.stats", "web")[name]
    assert 0 < used["memory"] < used["memory_limit"] == 32 * 1024**2
    assert 0 <= used["cpus"] < used["cpus_limit"] == 0.25
