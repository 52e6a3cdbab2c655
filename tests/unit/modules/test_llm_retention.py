from unittest.mock import create_autospec

import llm_builder
import llm_engine
import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_container, llm_image, llm_service
from _modules import llm_retention as llm_retention_module


def operation(do, container):
    return {"do": do, "container": container, "sentence": f"{do}: only 1 kept to go back to"}


@pytest.fixture
def builder(monkeypatch):
    """The engine: a container of image 1, and our images 1 to 3."""
    builder = create_autospec(llm_builder.Builder, instance=True)
    builder.containers.return_value = [
        {"Names": ["/llm-head-1-g2"], "ImageID": "1"},
        {"Names": ["/llm-head-1-g1"], "ImageID": "2"},
    ]
    builder.images.return_value = [
        {"Id": str(number), "RepoTags": [f"llm/head:{number}"], "Size": number}
        for number in (1, 2, 3, 4)
    ]
    builder.images.return_value.append({"Id": "5", "RepoTags": ["<none>:<none>"], "Size": 5})
    monkeypatch.setattr(llm_retention_module, "_builder", lambda: builder)
    return builder


@pytest.fixture
def llm_retention(configure_loader, builder):
    plan = {"operations": [operation("replace", "a"), operation("remove", "llm-head-1-g1")]}
    salt = {
        "llm_config.carried": lambda: ["head"],
        "llm_service.specs": create_autospec(llm_service.specs, return_value=[{"service": "head"}]),
        "llm_container.plan": create_autospec(llm_container.plan, return_value=plan),
        "llm_container.execute": create_autospec(
            llm_container.execute, return_value={"changes": {}, "errors": []}
        ),
        "llm_image.needed": create_autospec(llm_image.needed, return_value=["llm/head:4"]),
    }
    return configure_loader(llm_retention_module, salt=salt)


def test_unneeded_are_images_of_no_container_and_no_service(llm_retention):
    assert llm_retention.unneeded() == {"containers": {}, "images": {"llm/head:3": 3}}
    llm_retention.__salt__["llm_container.plan"].assert_not_called()


def test_unneeded_with_fewer_containers(llm_retention):
    found = llm_retention.unneeded(keep=1)
    assert list(found["containers"]) == ["llm-head-1-g1"]
    assert found["images"] == {"llm/head:2": 2, "llm/head:3": 3}
    ((specs,), _) = llm_retention.__salt__["llm_container.plan"].call_args
    assert specs == [{"service": "head", "keep": 1}]


def test_unneeded_is_not_what_must_stay(llm_retention):
    assert llm_retention.unneeded(keep=1, kept=["llm-head-1-g1"])["containers"] == {}


def test_prune_carries_out_removals_alone(llm_retention, builder):
    found = llm_retention.prune(keep=1)
    ((plan,), _) = llm_retention.__salt__["llm_container.execute"].call_args
    assert [each["container"] for each in plan["operations"]] == ["llm-head-1-g1"]
    builder.remove_image.assert_called_once_with("llm/head:3")
    assert found["images"] == {"llm/head:3": 3}


def test_prune_of_what_cannot_be_removed(llm_retention, builder):
    builder.remove_image.side_effect = llm_engine.EngineError("in use", 409)
    with pytest.raises(CommandExecutionError, match="llm/head:3: "):
        llm_retention.prune()
