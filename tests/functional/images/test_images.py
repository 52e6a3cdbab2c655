"""
What is in the images: what runs, and nothing else.
"""

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow]

TOOLS = "cc gcc g++ ld as make go pip pip3 uv git curl wget"


@pytest.fixture(params=["cache", "envoy", "head", "model-proxy", "rate-limiter"])
def image(request, images):
    return images[request.param]


def run(engine, image, script):
    body = {"Image": image, "Cmd": ["sh", "-c", script], "NetworkDisabled": True}
    container = engine.create(f"llm-test-{abs(hash((image, script)))}", body)
    try:
        engine.start(container)
        engine.request("POST", f"/containers/{container}/wait")
        return engine.logs(container, lines=1000)
    finally:
        engine.remove(container)


def test_image_has_no_tools_of_a_builder(engine, image):
    found = run(engine, image, f"for tool in {TOOLS}; do command -v $tool; done; ls /usr/include")
    assert [line for line in found if "No such file" not in line] == []


def test_image_runs_as_nobody(builder, image):
    assert builder.image(image)["Config"]["User"] == "65534:65534"


def test_image_has_nothing_that_takes_on_another_user(engine, image):
    script = "find / -xdev -perm /6000 -type f -user root 2>/dev/null | grep -v -e /bin/ -e /sbin/"
    assert run(engine, image, script) == []


def test_image_trusts_what_the_host_trusts(engine, image):
    found = run(
        engine, image, "ls /usr/local/share/ca-certificates; cat /etc/ssl/certs/*.crt | wc -l"
    )
    assert int(found[-1]) > 1000
    assert "README" in found
