"""
What is said to a command, checked by the annotations of its parameters.
"""

import functools
import inspect

from llm_problem import hint
from salt.exceptions import SaltInvocationError


def checked(command, arguments, keywords):
    """
    Return ``arguments`` and ``keywords`` as ``command`` takes them: of the types and within the
    ranges that its annotations say.

    Raises ``SaltInvocationError`` with a line for each mistake.
    """
    import pydantic  # which takes its time

    @functools.wraps(command)
    def given(*arguments, **keywords):
        return arguments, keywords

    try:
        return pydantic.validate_call(given)(*arguments, **keywords)
    except pydantic.ValidationError as errors:
        names = list(inspect.signature(command).parameters)
        lines = {}  # of each argument the first, for a union has one for each of its types
        for error in errors.errors(include_url=False):
            where = error["loc"][0]
            name = names[where] if isinstance(where, int) and where < len(names) else where
            lines.setdefault(name, _line(name, error, names))
        raise SaltInvocationError("\n".join(lines.values())) from None


def _line(name, error, names):
    match error["type"]:
        case "missing_argument":
            return f"{name}: is missing"
        case "unexpected_keyword_argument":
            known = hint(name, names) if names else "there are none"
            return f'unknown argument "{name}"; {known}'
        case "unexpected_positional_argument":
            return f'found "{error["input"]}" after the last of {len(names)} arguments'
    import llm_schema

    return llm_schema.problem(error, (name,)).line()
