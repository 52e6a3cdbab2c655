import contextlib, io, os, sys, time, traceback
from pathlib import Path
import pytest
D = Path("/tmp/faults_exp")

class Plugin:
    def __init__(self, held):
        self.held = held
    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.argname == "platform" and "integration" in str(request.node.nodeid or "integration"):
            key = fixturedef.cache_key(request)
            fixturedef.cached_result = (self.held, key, None)
            return self.held

@pytest.mark.timeout(0)
def test_hold(platform):
    (D / "info").write_text(f"{platform.name} {platform.root} {platform.folder} {platform.master.config_dir} {platform.minion.config_dir}\n")
    while not (D / "stop").exists():
        run = D / "run"
        if not run.exists():
            time.sleep(0.5); continue
        args = run.read_text().split(); run.unlink()
        for name in [n for n in sys.modules if n.startswith("tests.integration") or n in ("tests.support.faults", "tests.support.operator", "tests.support.deploys")]:
            if name != __name__: del sys.modules[name]
        with (D / "out").open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:logging", "--capture=sys", "--durations=20", *args], plugins=[Plugin(platform)])
            except BaseException:
                traceback.print_exc()
        (D / "done").write_text("x")
