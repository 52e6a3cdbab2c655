from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_certificate as llm_certificate_module
from _states import llm_certificate as llm_certificate_state


@pytest.fixture
def module():
    module = create_autospec(llm_certificate_module)
    module.warnings.return_value = []
    return module


@pytest.fixture
def llm_certificate(configure_loader, module, testmode):
    names = ("authority_flaws", "make_authority", "flaws", "renew", "warnings")
    salt = {f"llm_certificate.{name}": getattr(module, name) for name in names}
    return configure_loader(llm_certificate_state, salt=salt, test=testmode)


@pytest.fixture(params=["authority", "valid"])
def certificate(request, llm_certificate, module):
    """Each of the two states, with the functions that it calls."""
    if request.param == "authority":
        flaws, renew = module.authority_flaws, module.make_authority
        return lambda: llm_certificate.authority("This host is the authority"), flaws, renew
    return lambda: llm_certificate.valid("tail"), module.flaws, module.renew


def test_already_true(certificate):
    apply, flaws, renew = certificate
    flaws.return_value = []
    ret = apply()
    assert (ret["result"], ret["changes"]) == (True, {})
    assert ret["comment"].endswith("is valid")
    renew.assert_not_called()


def test_made_or_renewed(certificate, testmode):
    apply, flaws, renew = certificate
    flaws.return_value = ["it runs out in 9 days"]
    ret = apply()
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"certificate": {"old": ["it runs out in 9 days"], "new": "valid"}}
    assert ret["comment"].endswith("made: it runs out in 9 days")
    assert renew.called is not testmode


def test_valid_names_the_service(llm_certificate, module, testmode):
    module.flaws.return_value = ["there is none"]
    ret = llm_certificate.valid("tail")
    assert ret["name"] == "tail"
    assert "The certificate of tail" in ret["comment"]
    module.flaws.assert_called_once_with("tail")
    assert module.renew.mock_calls == ([] if testmode else [(("tail",),)])


@pytest.mark.parametrize(
    "error", [CommandExecutionError("the authority refuses"), PermissionError(13, "denied")]
)
def test_failure_is_explained(certificate, testmode, error):
    apply, flaws, renew = certificate
    flaws.return_value = ["there is none"]
    (flaws if testmode else renew).side_effect = error
    ret = apply()
    assert (ret["result"], ret["changes"]) == (False, {})
    assert str(error) in ret["comment"]


@pytest.mark.parametrize("found", [[], ["the key of site.yaml is another"]])
def test_valid_warns_of_own_one_that_runs_out(llm_certificate, module, testmode, found):
    module.flaws.return_value = found
    module.warnings.return_value = ["it runs out in 5 days: renew /a.pem of site.yaml"]
    ret = llm_certificate.valid("tail")
    assert ret["result"] is (None if testmode and found else True)
    assert ret["comment"].endswith("; it runs out in 5 days: renew /a.pem of site.yaml")
    module.warnings.assert_called_once_with("tail")


def test_valid_refuses_own_one_that_is_unfit(llm_certificate, module, testmode):
    module.flaws.side_effect = CommandExecutionError("/a.pem of site.yaml: it is for no names")
    ret = llm_certificate.valid("tail")
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"] == "The certificate of tail: /a.pem of site.yaml: it is for no names"
    module.renew.assert_not_called()
    module.warnings.assert_not_called()
