"""
A chat completion as a client asks for it, from the public port through every hop, and what it
tells of them: where the time went, or which of them failed.
"""

import json
import secrets
import ssl
import time

from salt.exceptions import CommandExecutionError

TOKENS = 8  # that are asked for
LONGEST = 300  # characters of an error that are shown
# What an answer says of the hops behind it, as each stands in for those after it.
UPSTREAM = "x-envoy-upstream-service-time"  # milliseconds that tail waited for mesh
TIMING = "server-timing"  # milliseconds that mesh waited for head


class KeyRefused(CommandExecutionError):
    """
    The key is not one that tail has.
    """


def verify(base_url, model, api_key, ca_file=None, server_name=None, timeout=60):
    """
    Ask for a completion twice, plain and streamed.

    base_url
        Of the API, such as ``https://127.0.0.1:8443/v1``.
    model
        As a client names it.
    api_key
        The client's.
    ca_file
        The authority of the server's certificate. Default: those of the system.
    server_name
        The name in the server's certificate. Default: the host of ``base_url``.
    timeout
        Seconds that the server may be silent. Default: 60.

    Returns ``{"model": name, "tokens": of the plain answer, "total": seconds of the plain answer,
    "first_token": seconds to the first piece of the streamed one, "hops": {hop: seconds}}``: the
    hops' seconds are each one's own, and add up to the total.

    Raises ``CommandExecutionError`` with the hop that failed and how, ``KeyRefused`` where it is
    the key.
    """
    import httpx

    context = ssl.create_default_context(cafile=ca_file)
    headers = {"Authorization": f"Bearer {api_key}"}
    headers |= {"Host": server_name} if server_name else {}
    with httpx.Client(
        base_url=base_url, verify=context, headers=headers, timeout=timeout, trust_env=False
    ) as client:
        extensions = {"sni_hostname": server_name} if server_name else {}
        try:
            plain = _plain(client, model, "head", extensions)
            first_token = _streamed(client, model, "head", extensions)
        except httpx.HTTPStatusError as err:
            refused = _refused(err.response, model).replace(api_key, "[redacted]")
            kind = KeyRefused if err.response.status_code == 401 else CommandExecutionError
            raise kind(refused) from None
        except httpx.HTTPError as err:
            raise CommandExecutionError(_unanswered(err, base_url, timeout)) from None
        except CommandExecutionError as err:
            raise CommandExecutionError(str(err).replace(api_key, "[redacted]")) from None
    return {"model": model, **plain, "first_token": first_token}


def ask(base_url, model, api_key, service, timeout=60):
    """
    Ask one ``service`` itself for a completion twice, plain and streamed; other arguments as of
    `verify`.

    Raises ``CommandExecutionError`` with what it answers.
    """
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx.Client(
        base_url=base_url, headers=headers, timeout=timeout, trust_env=False
    ) as client:
        try:
            _plain(client, model, service)
            _streamed(client, model, service)
        except httpx.HTTPStatusError as err:
            refused = f"{service} refuses the request for {model}: {_shown(err.response)}"
            raise CommandExecutionError(refused) from None
        except httpx.HTTPError as err:
            text = str(err) or type(err).__name__
            raise CommandExecutionError(f"{service} does not answer for {model}: {text}") from None


def _request(model, **more):
    """Return a request that no cache has an answer to."""
    question = {"role": "user", "content": f"Say something about {secrets.token_hex(4)}"}
    return {"model": model, "messages": [question], "max_tokens": TOKENS, **more}


def _plain(client, model, service, extensions=None):
    start = time.perf_counter()
    answer = client.post("chat/completions", json=_request(model), extensions=extensions)
    total = time.perf_counter() - start
    answer.raise_for_status()
    try:
        completion = answer.json()
        said = completion["choices"][0]["message"]["content"]
        tokens = completion["usage"]["completion_tokens"]
    except (ValueError, LookupError, TypeError):
        text = f"{service} answers, but no completion: {_shown(answer)}"
        raise CommandExecutionError(text) from None
    if not isinstance(said, str) or not tokens:
        raise CommandExecutionError(f"{model} answers without a word: {_shown(answer)}")
    return {"tokens": tokens, "total": total, "hops": _hops(answer.headers, completion, total)}


def _streamed(client, model, service, extensions=None):
    """Return after how many seconds the first piece came."""
    start, first, words = time.perf_counter(), None, 0
    request = _request(model, stream=True)
    with client.stream("POST", "chat/completions", json=request, extensions=extensions) as answer:
        if not answer.is_success:
            answer.read()
            answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data:"):
                continue
            first = first or time.perf_counter() - start
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                break
            words += _piece(data, service)
        else:
            text = f"{service} ends a streamed answer before it is complete"
            raise CommandExecutionError(text)
    if not words:
        raise CommandExecutionError(f"{model} streams an answer without a word")
    return first


def _piece(data, service):
    """Return whether one event of a stream carries words."""
    try:
        event = json.loads(data)
        if "error" in event:
            message = str(event["error"])[:LONGEST]
            raise CommandExecutionError(f"{service} breaks a streamed answer off: {message}")
        return any(choice["delta"].get("content") for choice in event["choices"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CommandExecutionError(f"{service} streams no completion: {data[:LONGEST]}") from None


def _hops(headers, completion, total):
    """Return how long each hop itself took, as far as the answer tells."""
    spans = {"tail": total}
    if (upstream := _number(headers.get(UPSTREAM))) is not None:
        spans["mesh"] = upstream
    if (head := _duration(headers.get(TIMING, ""), "head")) is not None:
        spans["head"] = head
    timings = completion.get("timings") or {}
    model = [_number(timings.get(key)) for key in ("prompt_ms", "predicted_ms")]
    if None not in model:
        spans["model-proxy"] = sum(model)
    names = list(spans)
    inner = [spans[name] for name in names[1:]] + [0]
    return {
        name: max(0, round(spans[name] - after, 6))
        for name, after in zip(names, inner, strict=True)
    }


def _number(milliseconds):
    """Return ``milliseconds`` in seconds, or ``None`` when that is no number."""
    try:
        return float(milliseconds) / 1000
    except (TypeError, ValueError):
        return None


def _duration(timing, name):
    """Return in seconds what a Server-Timing header says of ``name``."""
    for each in timing.split(","):
        metric, *parameters = (part.strip() for part in each.split(";"))
        for parameter in parameters:
            if metric == name and parameter.startswith("dur="):
                return _number(parameter.removeprefix("dur="))
    return None


def _refused(answer, model):
    """Return in words which hop gave an error for an answer."""
    status = answer.status_code
    if status == 401:
        return "tail refuses the client's API key: the key given is not the one that tail has"
    if status == 429:
        again = answer.headers.get("retry-after") or answer.headers.get("x-ratelimit-reset")
        return f"rate-limiter: the client is above its limit, again in {again or 'some'} s"
    if UPSTREAM not in answer.headers:
        if status >= 500:
            return f"tail cannot reach mesh: {_shown(answer)}"
        return f"tail refuses the request: {_shown(answer)}"
    if TIMING not in answer.headers and status >= 500:
        return f"mesh cannot reach head: {_shown(answer)}"
    if status < 500:
        return f"head refuses the request for {model}: {_shown(answer)}"
    return f"head gets no answer from {model}: {_shown(answer)}"


def _shown(answer):
    """Return the status and the message of an answer, in one line."""
    try:
        text = answer.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        text = answer.text
    words = " ".join(str(text).split())
    return f"{answer.status_code} {words[:LONGEST]}".strip()


def _unanswered(err, base_url, timeout):
    """Return in words at which hop a request got no answer."""
    import httpx

    text = str(err) or type(err).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("verify failed: ")[2].partition(" (_ssl")[0]
        return f"tail has a certificate that is not valid for {base_url}: {reason or text}"
    if isinstance(err, httpx.ConnectTimeout):
        return f"ingress does not accept a connection to {base_url} within {timeout:g} s"
    if isinstance(err, httpx.TimeoutException):
        return f"tail accepts the request and gives no answer within {timeout:g} s"
    if isinstance(err, httpx.ConnectError) and "SSL" not in text and "EOF" not in text:
        return f"ingress does not listen at {base_url}: {text}"
    return f"ingress ends the connection, as it does when it reaches no tail: {text}"
