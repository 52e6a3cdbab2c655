"""
Connections of a real container.
"""

import socket
import time

import pytest

from _modules import llm_drain
from tests.support.operator import until

pytestmark = pytest.mark.docker


def connected(address):
    """Return a connection to ``address`` as soon as something listens there."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(address, 5)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_wait_for_a_server_until_it_has_no_connection(site, engine, image, network):
    ret = site.state(
        "llm_container.running", "web",
        image=image, network=network, memory="32m", command=["httpd", "-f", "-p", "8000"],
    )  # fmt: skip
    assert ret["result"] is True, ret["comment"]
    (found,) = site.call("llm_container.list", "web")
    pid = engine.inspect(found["name"])["State"]["Pid"]
    with connected((found["address"], 8000)):
        until(lambda: llm_drain._open(pid, {8000}) == 1)  # once the server has accepted it
        assert site.call("llm_drain.wait", found["name"], timeout=1.5) == 1
    assert site.call("llm_drain.wait", found["name"], timeout=30) == 0
    assert llm_drain._open(pid, {8000}) == 0
