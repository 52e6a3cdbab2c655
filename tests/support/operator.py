"""
What an operator does to a `Platform` beside deploying it.
"""

import contextlib
import subprocess

import yaml


def set_secret(platform, name, value):
    """Give secret ``name`` another ``value``; return what the command printed."""
    done = subprocess.run(
        platform.command("salt-run", platform.master.config_dir, ["llm.secret", "set", name]),
        input=value, capture_output=True, text=True, check=False, cwd=platform.folder, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextlib.contextmanager
def site_changed(platform, **changes):
    """Lay ``changes`` upon ``site.yaml``, and keep secrets that are set meanwhile, for a while."""
    with contextlib.ExitStack() as stack:
        for path in (platform.pillar / "secrets").iterdir():
            stack.enter_context(platform.changed(path, path.read_text()))
        text = (platform.pillar / "site.yaml").read_text()
        stack.enter_context(platform.changed("pillar/site.yaml", text))
        platform.change_site(**changes)
        yield yaml.safe_load((platform.pillar / "site.yaml").read_text())


def gateway(platform):
    """Return the address at which containers of the platform find this machine."""
    site = yaml.safe_load((platform.pillar / "site.yaml").read_text())
    return site["network"]["subnet"].replace(".0/20", ".1")
