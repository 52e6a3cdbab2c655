"""One port for several llama.cpp servers: a request goes to the one whose model it names."""

import json

from aiohttp import ClientError, ClientSession, ClientTimeout, web

# What belongs to one connection, or is computed anew for it.
NOT_PASSED_ON = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


def error(status, message):
    """Return an answer in the form that OpenAI's clients expect."""
    body = {"error": {"message": message, "type": "invalid_request_error", "code": status}}
    return web.json_response(body, status=status)


def passed_on(headers):
    return {name: value for name, value in headers.items() if name.lower() not in NOT_PASSED_ON}


class ByName:
    """
    Handlers over ``servers``, a mapping of model name to address.
    """

    def __init__(self, servers, timeout):
        self.servers = servers
        self.timeout = ClientTimeout(total=timeout)

    async def session(self, app):
        async with ClientSession(timeout=self.timeout, auto_decompress=False) as self.client:
            yield

    async def health(self, request):
        """Answer ok when each server does, else what the first of the others says."""
        for address in self.servers.values():
            async with self.client.get(f"{address}/health") as answer:
                if answer.status != 200:
                    return web.Response(status=answer.status, body=await answer.read())
        return web.json_response({"status": "ok"})

    async def models(self, request):
        """Answer with the models of all servers."""
        found = []
        for address in self.servers.values():
            headers = passed_on(request.headers)
            async with self.client.get(f"{address}/v1/models", headers=headers) as answer:
                if answer.status != 200:
                    return web.Response(status=answer.status, body=await answer.read())
                found += json.loads(await answer.read())["data"]
        return web.json_response({"object": "list", "data": found})

    async def ask(self, request):
        """Pass a request on and its answer back, piece by piece as it comes."""
        body = await request.read()
        try:
            name = json.loads(body)["model"]
        except (ValueError, TypeError, KeyError):
            return error(400, "the body is no JSON object that names a model")
        if name not in self.servers:
            return error(404, f"no such model; there are {', '.join(sorted(self.servers))}")
        url, headers = self.servers[name] + request.path_qs, passed_on(request.headers)
        async with self.client.post(url, headers=headers, data=body) as answer:
            response = web.StreamResponse(status=answer.status, headers=passed_on(answer.headers))
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response


@web.middleware
async def explain(request, handler):
    """Answer 502 when a server does not, as long as nothing was sent yet."""
    try:
        return await handler(request)
    except (ClientError, TimeoutError):
        return error(502, "the model's server does not answer")


def serve(servers, host, port, timeout):
    """Serve until SIGTERM or SIGINT."""
    by_name = ByName(servers, timeout)
    app = web.Application(middlewares=[explain], client_max_size=64 * 1024**2)
    app.cleanup_ctx.append(by_name.session)
    app.router.add_get("/health", by_name.health)
    app.router.add_get("/v1/models", by_name.models)
    app.router.add_post("/{path:.*}", by_name.ask)
    web.run_app(app, host=host, port=port, access_log=None, print=None)
