"""
`make up`, `make down` and `make purge` on a bare Debian: the story of one machine, in order.
"""

import json
import os
import re
import time

import pytest
import yaml

from tests.support.host import CHECKOUT, Host

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def host():
    """A bare host with a clone of this checkout."""
    with Host(f"llm-test-{os.getpid()}") as bare:
        bare.clone()
        yield bare


@pytest.fixture(scope="module")
def before(host):
    """What there is on the host before anything was done."""
    return host.files(), set(host.run("dpkg-query -W").splitlines())


@pytest.fixture(scope="module")
def make(host):
    """A function that runs `make` on the host and returns its exit code and output."""
    return host.make


@pytest.fixture(scope="module")
def up(before, make):
    """The output of the `make up` that brought the platform up."""
    code, output = make("up")
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def containers(host):
    """A function that tells of each container, by name, when it was started, and its state."""
    return host.containers


def test_refusals_come_all_at_once_and_change_nothing(host, before, make):
    host.run("mkdir -p /var/lib/llm /tmp/empty; mount -t tmpfs -o size=64m none /var/lib/llm")
    host.begin("exec python3 -B -m http.server --bind 127.0.0.1 4505", folder="/tmp/empty")
    host.wait_for("grep -q ':1199 .* 0A ' /proc/net/tcp")
    closed = "http://127.0.0.1:9"
    code, output = make("up", http_proxy=closed, https_proxy=closed)
    host.run("umount /var/lib/llm; rmdir /var/lib/llm /tmp/empty")
    assert code != 0
    assert re.search(r"port 4505 is held by process \d+ \(python3 -B -m http.server", output)
    assert re.search(r"free on the disk of /var/lib/llm: .* GiB are needed", output)
    assert "deb.debian.org/debian/ does not answer" in re.sub(r"dists\S+", "", output)
    assert "pypi.org/simple/uv/ does not answer" in output
    assert "Traceback" not in output
    assert host.files() - before[0] == set()
    assert set(host.run("dpkg-query -W").splitlines()) == before[1]
    host.run("kill $(sed -n 's/^Pid:\\s*//p' $(grep -l http.server /proc/[0-9]*/cmdline |"
             " sed 's/cmdline/status/' | head -1))")  # fmt: skip


def test_user_is_refused(host, make):
    code, output = host.execute(f"setpriv --reuid=65534 make -C {CHECKOUT} up")
    assert code != 0
    assert "not root: run `sudo make up`" in output
    assert "Traceback" not in output


def test_python_that_salt_does_not_know_is_refused(host, make):
    host.write(
        "/srv/old",
        "#!/bin/sh\nexec python3 -c 'import runpy, sys; sys.version_info = (3, 10, 0);"
        ' sys.path.insert(0, "bin"); sys.argv = ["bootstrap", "up"];'
        ' runpy.run_module("bootstrap", run_name="__main__")\'\n',
    )
    code, output = make("up PYTHON='sh /srv/old'")
    host.run("rm /srv/old")
    assert code != 0
    assert "python3 is 3.10" in output
    assert "make up PYTHON=" in output


def test_up_says_all_the_time_what_it_does(up):
    steps = re.findall(r"^\[(\d)/(\d)\] (.+)$", up, re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == list(range(1, len(steps) + 1))
    waits = [int(seconds) for seconds in re.findall(r"^ +(\d+) s  \S", up, re.MULTILINE)]
    gaps = [late - early for early, late in zip(waits, waits[1:], strict=False) if late > early]
    assert max(gaps) <= 4


def test_line_that_up_prints_gets_a_completion(host, up):
    (line,) = [line for line in up.splitlines() if line.startswith("curl ")]
    answer = json.loads(host.run(f"{line} --silent --show-error"))
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert not re.search(r"sk-\w{8}", up)


def test_second_up_changes_nothing(up, make, containers):
    started = containers()
    code, output = make("up")
    assert code == 0, output
    assert "Nothing to do" in output
    assert int(re.search(r"all is as declared \((\d+) s\)", output).group(1)) <= 20
    assert containers() == started


@pytest.mark.parametrize(
    "command",
    [
        "salt node1 test.ping",
        "salt-run manage.up",
        "salt-call test.ping",
        "salt-call --local test.ping",
        "salt-key --list=accepted",
    ],
)
def test_programs_work_from_the_checkout_as_they_are(host, up, command):
    output = host.run(f".venv/bin/{command}", folder=CHECKOUT)
    assert "node1" in output or "True" in output


def test_no_key_is_accepted_that_nobody_looked_at(host, up):
    other = "/tmp/other"
    host.run(f"mkdir -p {other}")
    host.write(
        f"{other}/minion",
        f"id: other\nmaster: 127.0.0.1\nroot_dir: {other}\npki_dir: {other}/pki\n",
    )
    minion = f".venv/bin/salt-minion -c {other} > {other}/log 2>&1"
    host.execute(f"timeout --kill-after 5 8 {minion}", folder=CHECKOUT)
    keys = json.loads(host.run(".venv/bin/salt-key -L --out=json", folder=CHECKOUT))
    assert (keys["minions"], keys["minions_pre"]) == (["node1"], ["other"])
    host.run(f".venv/bin/salt-key -y -d other; rm -r {other}", folder=CHECKOUT)


@pytest.mark.parametrize("daemon", ["salt/run/master.pid", "salt/run/minion.pid"])
def test_daemons_come_back_when_killed(host, up, daemon):
    pid = host.run(f"cat /var/lib/llm/{daemon}").strip()
    host.run(f"kill -9 {pid}")
    host.wait_for(f"test $(cat /var/lib/llm/{daemon}) != {pid} && sleep 6 &&"
                  f" kill -0 $(cat /var/lib/llm/{daemon})")  # fmt: skip
    host.wait_for(f"cd {CHECKOUT} && .venv/bin/salt -t 3 node1 test.ping", timeout=90)


def test_engine_comes_back_and_containers_do_not_notice(host, up, containers):
    started = containers()
    host.run("kill -9 $(cat /var/run/docker.pid)")
    host.wait_for(
        f"PYTHONPATH={CHECKOUT}/bin python3 -B -c"
        " 'import sys; from bootstrap import engine; sys.exit(not engine.answers())'"
    )
    assert containers() == started


def test_reboot_brings_back_what_served_and_nothing_else(host, up, containers):
    """A power cut: every process ends at once, and what lies in memory alone is gone."""
    change = "s/rate-limiter: {/rate-limiter: {pids: 300, /"
    host.run(f"sed -i '{change}' pillar/environments/dev.sls", folder=CHECKOUT)
    host.run(".venv/bin/salt-call state.apply rate-limiter", folder=CHECKOUT)
    before = {name: state for name, (_, state) in containers().items()}
    assert before["/llm-rate-limiter-1-g1"] == "exited"
    assert before["/llm-rate-limiter-1-g2"] == "running"
    host.reboot()
    host.run(f"{CHECKOUT}/.venv/bin/supervisord -c /var/lib/llm/salt/supervisor/supervisord.conf")
    (line,) = [line for line in up.splitlines() if line.startswith("curl ")]
    host.wait_for(f"{line} --silent --show-error --fail", timeout=300)
    assert {name: state for name, (_, state) in containers().items()} == before


def test_container_that_somebody_removes_comes_back_by_itself(host, up, containers):
    name = "llm-rate-limiter-1-g2"
    started = containers()[f"/{name}"]
    ask = f"PYTHONPATH={CHECKOUT}/bin python3 -B -c 'from bootstrap import engine; engine."
    host.run(f"""{ask}remove("containers", "{name}", force=1)'""")
    host.wait_for(f"""{ask}ask("GET", "/containers/{name}/json")'""")
    assert containers()[f"/{name}"] != started


def change(host, pids):
    """Have other limits of the rate-limiter, whose replacement then takes some seconds."""
    path = f"{CHECKOUT}/pillar/environments/dev.sls"
    text = yaml.safe_load(host.run(f"cat {path}"))
    text["llm"]["services"]["rate-limiter"] |= {"pids": pids, "min_healthy": "5s"}
    host.write(path, yaml.safe_dump(text))


def deploy_until_it_replaces(host):
    """Begin a deploy; return the containers before, once there is another one beside them."""
    before = host.containers()
    host.begin(".venv/bin/salt-run llm.deploy >/tmp/said 2>&1; echo $? >/tmp/code", folder=CHECKOUT)
    deadline = time.monotonic() + 180
    while host.containers().keys() == before.keys():
        assert time.monotonic() < deadline, host.run("cat /tmp/said")
        time.sleep(0.3)
    return before


def serves_once(host, new):
    """One generation serves, with one ``new`` container at most; there is nothing left to do."""
    done = host.execute(".venv/bin/salt-run llm.plan", folder=CHECKOUT)
    assert done == (0, "Nothing to do\n")
    names = host.containers(parked=False)
    assert len(names) == len({name.rpartition("-g")[0] for name in names}) == 7
    assert len(names.keys() & new) == 1
    host.run(".venv/bin/salt-run llm.verify", folder=CHECKOUT)


ENGINE_FAULTS = {
    "frozen": "kill -STOP $(cat /run/docker.pid); sleep 12; kill -CONT $(cat /run/docker.pid)",
    "killed": "kill -KILL $(cat /run/docker.pid)",
}


@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_engine_fails_in_mid_deploy(host, up, fault):
    """The deploy waits for it and goes on; no other container is touched."""
    change(host, 500 + len(fault) + len(ENGINE_FAULTS[fault]))
    before = deploy_until_it_replaces(host)
    host.run(ENGINE_FAULTS[fault])
    code = host.wait_for("cat /tmp/code && rm /tmp/code", timeout=300).strip()
    said = host.run("cat /tmp/said")
    assert code == "0", said
    assert "is stable after" in said
    after = host.containers()
    new = after.keys() - before.keys()
    started = {name: when for name, (when, _) in after.items() if name not in new}
    assert started == {name: before[name][0] for name in started}
    serves_once(host, new)


def test_host_goes_down_in_mid_deploy(host, up, make):
    """All its processes end at once; what comes up is one generation, and no parked one."""
    change(host, 600)
    before = deploy_until_it_replaces(host)
    host.reboot()
    code, output = make("up")
    assert code == 0, output
    serves_once(host, host.containers().keys() - before.keys())
    found = json.loads(
        host.run(".venv/bin/salt-run llm.releases lines=3 --out=json", folder=CHECKOUT)
    )
    assert "interrupted" in {each["result"] for each in found["releases"]}


def test_down_keeps_data_and_an_interrupted_up_is_gone_on_with(host, up, make, containers):
    keys = host.run("sha256sum /var/lib/llm/services/*/tls/*.pem")
    code, output = make("down")
    assert code == 0, output
    assert "failed" not in output
    assert containers() == {}
    assert host.run("sha256sum /var/lib/llm/services/*/tls/*.pem") == keys
    assert host.execute("ls -d /var/lib/llm/services/*/config")[0] != 0
    assert '"address"' not in host.run("cat /var/lib/llm/endpoints/*.yaml")
    assert "salt-m" not in host.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    code, output = host.execute(f"cd {CHECKOUT} && timeout --signal=INT 9 make up")
    assert code != 0
    assert "goes on from here" in output
    code, output = make("up")
    assert code == 0, output
    assert "curl " in output


def test_purge_asks(up, make, containers):
    code, output = make("purge")
    assert code != 0
    assert "YES=1" in output
    assert containers()


def test_purge_leaves_nothing_even_where_half_is_broken(host, before, up, make):
    host.run("mkdir -p /srv/theirs && touch /srv/theirs/file")
    host.run("rm -r .venv/bin .venv/lib && echo 'hosts: [' >> pillar/site.yaml", folder=CHECKOUT)
    code, output = make("purge", YES="1")
    assert code == 0, output
    assert host.files() - before[0] == {"/srv/theirs", "/srv/theirs/file"}
    words = host.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert not re.search(r"salt|supervisord|dockerd|gpg-agent|envoy", words)
    assert "docker.io" not in host.run(
        "dpkg-query -W -f '${Package} ${Status}\\n' | grep installed"
    )


def test_purge_of_what_was_never_there(make):
    code, output = make("purge", YES="1")
    assert code == 0, output
    assert "Nothing of the platform is left" in output


def test_purge_leaves_an_engine_that_others_use_by_now(host, make):
    host.run("apt-get install -y --no-install-recommends docker.io && mkdir -p /var/lib/llm/salt")
    host.begin("exec dockerd")
    ask = f"PYTHONPATH={CHECKOUT}/bin python3 -B -c 'import sys; from bootstrap import engine; "
    host.wait_for(f"{ask} sys.exit(not engine.answers())'")
    for name, labels in (("theirs", "{}"), ("ours", '{"llm.site": "llm"}')):
        host.run(f'{ask} engine.ask("POST", "/volumes/create",'
                 f' {{"Name": "{name}", "Labels": {labels}}})\'')  # fmt: skip
    host.write("/var/lib/llm/salt/installation.json", "{}")
    host.write("/var/lib/llm/engine.json", json.dumps({"packages": ["docker.io"]}))
    code, output = make("purge", YES="1")
    assert code == 0, output
    assert "others use it by now (theirs)" in output
    volumes = host.run(
        f'{ask} print([v["Name"] for v in engine.ask("GET", "/volumes")["Volumes"]])\''
    )
    assert volumes.strip() == "['theirs']"
