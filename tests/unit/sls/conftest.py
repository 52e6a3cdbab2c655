"""
SLS files as Salt compiles them: rendered, with requisites and arguments checked. Nothing is run.
"""

import pytest
import salt.config
import salt.state

GRAINS = {"kernel": "Linux", "os": "Debian", "os_family": "Debian", "osmajorrelease": 12}


class Compiler:
    """
    Salt's state compiler on one host with one pillar.
    """

    def __init__(self, opts, pillar):
        self.high_state = salt.state.HighState(opts, initial_pillar=pillar)
        self.state = self.high_state.state

    def sls(self, *names):
        """Return what is wrong with SLS files, and the states in them in their order."""
        return self._compiled({"base": list(names)})

    def top(self):
        """Return the same of all that the top file gives this host."""
        return self._compiled(self.high_state.top_matches(self.high_state.get_top()))

    def _compiled(self, matches):
        self.high_state.building_highstate = type(self.high_state.building_highstate)()
        self.high_state.push_active()
        try:
            high, errors = self.high_state.render_highstate(matches)
        finally:
            self.high_state.pop_active()
        if errors:
            return errors, []
        high, errors = self.state.reconcile_extend(high)
        errors += self.state.verify_high(high)
        high, more = self.state.requisite_in(high)
        chunks, missing = self.state.compile_high_data(high)
        errors += more + missing
        for chunk in chunks:
            errors += self.state.verify_data(chunk)
        return errors, chunks


@pytest.fixture(scope="module")
def compiler(repository, tmp_path_factory):
    """A function that returns the `Compiler` of a host with a pillar."""
    compilers = []

    def compiler_(host, pillar):
        folder = tmp_path_factory.mktemp("salt")
        configuration = {
            "id": host,
            "grains": GRAINS | {"id": host},
            "file_client": "local",
            "file_roots": {"base": [str(repository / "salt")]},
            "pillar_roots": {"base": []},
            "module_dirs": [str(repository)],
            "root_dir": str(folder),
            "cachedir": str(folder / "cache"),
            "extension_modules": str(folder / "extmods"),
            "saltenv": "base",
            "docker.url": "unix:///nowhere/docker.sock",  # whoever compiles asks no engine
        }
        opts = salt.config.apply_minion_config(configuration, salt.config.DEFAULT_MINION_OPTS)
        (folder / "cache").mkdir()
        compilers.append(Compiler(opts, pillar))
        return compilers[-1]

    yield compiler_
    for each in compilers:
        each.high_state.destroy()
