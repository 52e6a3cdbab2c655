#!/opt/head/bin/python
"""Start LiteLLM with one file of settings: llm-head FILE PORT."""

import json
import logging
import os
import sys

import yaml

# Beyond LiteLLM's own list of them: what it takes from a request as if an administrator had said
# it. A mocked answer, for one, is cached and then given to everybody.
RESERVED = {
    "additional_drop_params", "callbacks", "content_policy_fallbacks", "context_window_fallbacks",
    "default_fallbacks", "disable_global_guardrails", "drop_params", "extra_body", "extra_headers",
    "failure_callback", "http_client", "organization", "router_settings_override",
    "service_callback", "specific_deployment", "success_callback", "timeout",
}  # fmt: skip
CLIENTS_OWN = {"cache", "metadata"}  # on that list, and still a client's to say
PREFIXES = ("litellm_", "mock_")
FORMS = "/v1/audio/"  # sound comes as a form, at which LiteLLM looks alone


class Gate:
    """
    Answers a request that says more than a client may, in place of LiteLLM, which would obey or
    fail: https://github.com/BerriAI/litellm/security/advisories/GHSA-jh89-88fc-qrfp
    """

    def __init__(self, app):
        from litellm.proxy.auth.auth_utils import _BANNED_REQUEST_BODY_PARAMS
        from litellm.types.utils import is_litellm_owned_kwarg

        self.app = app
        self.is_owned = is_litellm_owned_kwarg
        self.banned = set(_BANNED_REQUEST_BODY_PARAMS)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        if refusal := self.refusal(scope, body):
            await answer(refusal, send)
            return

        async def replay():
            return messages.pop(0) if messages else await receive()

        # LiteLLM takes a query for a part of the body.
        await self.app(scope | {"query_string": b""}, replay, send)

    def refusal(self, scope, body):
        """Return the error that a request deserves, or ``None``."""
        kind = dict(scope["headers"]).get(b"content-type", b"").lower()
        if kind.startswith(b"multipart/form-data") and scope["path"].startswith(FORMS):
            return None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or kind.startswith((b"multipart/", b"application/x-www")):
            return {"message": "The body is no JSON object.", "param": None, "code": "invalid_json"}
        metadata = document.get("metadata")
        nested = self.banned.intersection(metadata) if isinstance(metadata, dict) else ()
        for name in [*filter(self.is_reserved, document), *nested]:
            text = f"Unknown parameter: '{name}'."
            return {"message": text, "param": name, "code": "unknown_parameter"}
        return None

    def is_reserved(self, name):
        """Return whether a parameter is not a client's to say."""
        if name in CLIENTS_OWN:
            return False
        known = name in RESERVED or name in self.banned or self.is_owned(name)
        return known or name.startswith(PREFIXES)


async def answer(error, send):
    """Answer in the form that OpenAI's clients expect."""
    body = json.dumps({"error": {**error, "type": "invalid_request_error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_worth_a_line(record):
    """Keep the mesh's health checks, several a second, out of the access log."""
    return os.environ.get("ACCESS_LOG") != "no" and "GET /health/" not in record.getMessage()


def main(path, port):
    """Read what LiteLLM wants to know before it is imported, and become it."""
    with open(path, encoding="utf-8") as file:
        os.environ.update(yaml.safe_load(file).get("environment_variables") or {})
    logging.getLogger("uvicorn.access").addFilter(is_worth_a_line)

    from litellm import run_server
    from litellm.proxy.proxy_server import app

    app.add_middleware(Gate)
    sys.argv = ["litellm", "--config", path, "--host", "0.0.0.0", "--port", port]
    run_server(standalone_mode=True)


main(*sys.argv[1:])
