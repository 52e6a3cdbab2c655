import threading

import pytest

pytestmark = pytest.mark.docker


def test_stream_tells_what_happens_as_it_happens(site, engine, image):
    """And nothing that was not asked for, until the connection ends."""
    told, heard = [], threading.Event()

    def listen():
        for event in engine.stream(["container"], ["die", "rename"]):
            if event["Actor"]["Attributes"].get("llm.site") == site.name:
                told.append((event["Action"], event["Actor"]["Attributes"]["name"]))
                heard.set()

    threading.Thread(target=listen, daemon=True).start()
    site.state("llm_container.running", "bench", image=image, network="none")
    name = f"{site.name}-bench-1-g1"
    # The stream may begin a moment later than this.
    while not heard.wait(0.5):
        engine.rename(name, f"{site.name}-other")
        engine.rename(f"{site.name}-other", name)
    heard.clear()
    engine.stop(name, seconds=0)
    while ("die", name) not in told:
        assert heard.wait(30)
        heard.clear()
    assert {kind for kind, _ in told} == {"rename", "die"}
