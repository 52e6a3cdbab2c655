"""
Salt's dunders for modules under test.
"""

import contextlib

import pytest
from saltfactories.utils.loader import LoaderModuleMock


@pytest.fixture
def configure_loader(pillar, tmp_path):
    """
    A function that gives a module its dunders: ``configure_loader(module, salt={...}, test=True)``.

    module
        As imported: ``from _states import llm_config as llm_config_state``.
    salt
        What ``__salt__`` holds. Default: nothing.
    test
        ``__opts__["test"]``. Default: ``False``.
    dunders
        Others in place of those of node1 in dev: ``pillar={...}``, ``opts={...}``,
        ``grains={...}``, ``context={...}``, ``jid_event=...``.
    """
    with contextlib.ExitStack() as stack:

        def configure(module, salt=None, test=False, **dunders):
            opts = {"id": "node1", "cachedir": str(tmp_path), "test": test, "saltenv": "base"}
            given = {
                "salt": {} if salt is None else salt,
                "opts": opts | dunders.pop("opts", {}),
                "pillar": {"llm": pillar},
                "context": {},
                "grains": {},
                "utils": {},
            } | dunders
            mock = {f"__{name}__": value for name, value in given.items()}
            stack.enter_context(LoaderModuleMock({module: mock}))
            return module

        yield configure


@pytest.fixture(params=(False, True), ids=("apply", "test"))
def testmode(request):
    """Run a test twice, in apply and in test mode; the value of ``__opts__["test"]``."""
    return request.param
