"""
What README.md tells operators to type is there, and what it tells them to write is right.
"""

import pathlib
import re

import llm_catalogue
import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "README.md").read_text()
EXAMPLES = re.findall(r"```yaml\n# pillar/(\S+)\n(.*?)```", TEXT, re.DOTALL)
PROVIDERS = {"openai": "canary-provider"}


def _found(pattern):
    return sorted(set(re.findall(pattern, TEXT)))


@pytest.mark.parametrize(("path", "text"), EXAMPLES, ids=[path for path, _ in EXAMPLES])
def test_example_is_sound(compile_pillar, path, text):
    found = yaml.safe_load(text)
    pillar = compile_pillar("production" if "production" in path else "dev")
    if path == "site.yaml":
        pillar = llm_catalogue.merged(pillar, {"site": found})
        secrets = {"providers": PROVIDERS, "clients": {"batch": "canary-client-batch"}}
        pillar = llm_catalogue.merged(pillar, {"secrets": secrets})
    elif path == "services.sls":
        pillar["services"] |= found  # in place of what stands there
        following = EXAMPLES[EXAMPLES.index((path, text)) + 1]
        pillar["site"]["models"] = yaml.safe_load(following[1])["models"]
    else:
        pillar = llm_catalogue.merged(pillar, found["llm"])
    assert [each.text() for each in llm_catalogue.problems(pillar, host="node1")] == []


def test_files_are_there():
    paths = [path for path in _found(r"\]\(([^)#]+)\)") if not path.startswith("https:")]
    assert paths
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_make_targets_are_there():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = _found(r"\bmake (up|down|purge|\w+)\b(?=[`; \n])")
    assert {"up", "test", "purge"} <= set(targets)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []


def test_runners_and_modules_are_there():
    code = {"llm": (REPOSITORY / "_runners/llm.py").read_text()}
    code |= {path.stem: path.read_text() for path in (REPOSITORY / "_modules").glob("*.py")}
    missing = [
        f"{module}.{function}"
        for module, function in _found(r"(?<![\w/])(llm(?:_\w+)?)\.(?!py\b)(\w+)\b(?=[`' \n])")
        if f"\ndef {function}" not in code.get(module, "")
    ]
    assert missing == []


def test_sls_are_there():
    names = _found(r"(?:state\.apply|state\.orchestrate) ([\w-]+(?:\.[\w-]+)*)(?![\w.=…])")
    assert {"head", "orch.deploy"} <= set(names)
    paths = [REPOSITORY / "salt" / name.replace(".", "/") for name in names if name != "test"]
    assert [p for p in paths if not (p.with_suffix(".sls").exists() or p.is_dir())] == []


def test_no_default_is_repeated():
    defaults = (REPOSITORY / "pillar/services.sls").read_text()
    assert "memory: 512m" in defaults
    assert "512m" not in TEXT
