"""
Whoever asks Salt for help gets it: `salt '*' sys.doc llm_container`.
"""

import ast
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FOR_CODE = {"llm_config.secret", "llm_health.redacted"}  # on a command line a secret would show


def _functions(folder):
    """Yield ``(module, function)`` for each public function of the files of a folder."""
    for path in sorted((REPOSITORY / folder).glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield pytest.param(path.stem, node, id=f"{path.stem}.{node.name}")


def _text(function):
    return ast.get_docstring(function) or ""


@pytest.mark.parametrize(("module", "function"), [*_functions("_modules"), *_functions("_runners")])
def test_function_has_an_example(module, function):
    name = f"{module}.{function.name.rstrip('_')}"
    assert _text(function)
    if name not in FOR_CODE:
        assert "CLI Example:\n\n.. code-block:: bash\n" in _text(function)
        assert f" {name}" in _text(function)


@pytest.mark.parametrize(("module", "function"), [*_functions("_states")])
def test_state_has_an_example(module, function):
    text = _text(function)
    assert ".. code-block:: yaml" in text
    assert f"{module}.{function.name}" in text


@pytest.mark.parametrize(("module", "function"), [*_functions("_utils")])
def test_shared_function_says_what_it_is_for(module, function):
    assert _text(function)


@pytest.mark.parametrize(
    ("module", "function"),
    [*_functions("_modules"), *_functions("_states"), *_functions("_runners")],
)
def test_each_argument_is_explained(module, function):
    folder = "_states" if "code-block:: yaml" in _text(function) else "_modules"
    path = REPOSITORY / folder / f"{module}.py"
    # What all functions of a file share may stand at its top.
    top = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else ""
    lines = [line for line in f"{_text(function)}\n{top}".splitlines() if line[:1].isidentifier()]
    explained = {name.strip() for line in lines for name in line.split(",")} | {"name"}
    arguments = {each.arg for each in function.args.args + function.args.kwonlyargs}
    missing = sorted(arguments - explained)
    assert [name for name in missing if f"``{name}``" not in _text(function)] == []
