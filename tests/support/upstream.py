"""
Small servers in place of the services behind an Envoy, well or unwell as a test wants them.
"""

import contextlib
import http.server
import json
import socket
import socketserver
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Upstream:
    """
    An OpenAI server whose answers say what it was asked.

    ``mode`` is how it answers: ``well``, ``slow`` (after ``delay`` seconds), ``fail`` (503),
    ``reset`` (ends the connection without an answer). ``requests`` is what it was asked. With
    ``heard``, a semaphore, each chunk of a stream waits until the one before was heard.
    """

    def __init__(self, address, port):
        self.requests = []
        self.reset()
        upstream = self

        class Handler(_Handler):
            server_of = upstream

        self.server = _Server((address, port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def reset(self):
        """Be well again, and forget what was asked."""
        self.mode, self.sick, self.delay, self.chunks, self.heard = "well", False, 0.2, 5, None
        self.requests.clear()

    def goes_on(self, number, body):
        """Return whether there is a chunk of this number in the stream that ``body`` asks for."""
        return number < self.chunks

    def pause(self, body):
        """Take some time after a chunk of the stream that ``body`` asks for."""
        if self.heard:
            assert self.heard.acquire(timeout=20), "nobody heard it"
        else:
            time.sleep(self.delay)

    def stop(self):
        """End it, and every connection to it."""
        self.server.shutdown()
        self.server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *given):
        self.open = set()
        super().__init__(*given)

    def get_request(self):
        connection, address = super().get_request()
        self.open.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self):
        super().server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Say nothing: connections are meant to break."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_of = None

    def log_message(self, *given):
        """Say nothing."""

    def do_GET(self):
        if self.path.startswith("/health"):
            self.answer({"status": "ok"}, 503 if self.server_of.sick else 200)
        else:
            self.handle_request("")

    def do_POST(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.handle_request(body.decode(errors="replace"))

    def handle_request(self, body):
        upstream = self.server_of
        asked = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body,
            "time": time.monotonic(),
        }
        upstream.requests.append(asked)
        if upstream.mode == "reset":
            self.close_connection = True
            return
        if upstream.mode == "slow":
            time.sleep(upstream.delay)
        if upstream.mode == "fail":
            self.answer({"error": {"message": "failing"}}, 503)
        elif '"stream": true' in body or '"stream":true' in body:
            self.stream(upstream, body)
        else:
            short = {key: asked[key] for key in ("method", "path", "headers")}
            message = {"role": "assistant", "content": "well"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            completion = {"id": "1", "object": "chat.completion", "choices": [choice]}
            completion |= {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
            self.answer(short | completion | {"bytes": len(body)})

    def answer(self, body, status=200):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("x-litellm-version", "1")
        self.send_header("llm_provider-x-request-id", "1")
        self.end_headers()
        self.wfile.write(text)

    def stream(self, upstream, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        number = 0
        while upstream.goes_on(number, body):
            delta = {"index": 0, "delta": {"content": f"{number} "}}
            chunk = {"id": "1", "object": "chat.completion.chunk", "choices": [delta]}
            self.chunk(f"data: {json.dumps(chunk)}\n\n")
            upstream.pause(body)
            number += 1
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def chunk(self, text):
        self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
        self.wfile.flush()


class Cache:
    """
    A Redis server that wants a password, and knows no other answer than ``answer``.
    """

    def __init__(self, address, port):
        self.answer = b"-NOAUTH Authentication required.\r\n"
        cache = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    while self.request.recv(1024):
                        self.request.sendall(cache.answer)

        self.server = _Server((address, port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def stop(self):
        """End it, and every connection to it."""
        self.server.shutdown()
        self.server.server_close()


class Limiter:
    """
    A rate limiter that lets each client ask ``limit`` times, and says that its time starts anew in
    17 seconds. ``asked`` is what it was asked: pairs of domain and client.
    """

    METHOD = "envoy.service.ratelimit.v3.RateLimitService"

    def __init__(self, address, port):
        self.limit, self.asked = 1000000, []
        handler = grpc.method_handlers_generic_handler(
            self.METHOD, {"ShouldRateLimit": grpc.unary_unary_rpc_method_handler(self.decide)}
        )
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        self.server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(handler,))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self.server)
        self.server.add_insecure_port(f"{address}:{port}")
        self.server.start()

    def decide(self, request, _context):
        """Answer a request, of whose bytes only the texts are looked at."""
        client = request.rsplit(b"client\x12", 1)[1]
        client = client[1 : 1 + client[0]].decode()
        self.asked.append(client)
        left = self.limit - self.asked.count(client)
        code = 1 if left >= 0 else 2  # OK, OVER_LIMIT
        limit = _field(1, self.limit) + _field(2, 2)  # requests per minute
        status = _field(1, code) + _message(2, limit) + _field(3, max(left, 0))
        status += _message(4, _field(1, 17))
        return _field(1, code) + _message(2, status)

    def reset(self):
        """Let everyone ask as much as they like."""
        self.limit = 1000000
        self.asked.clear()

    def stop(self):
        """End it."""
        self.server.stop(0).wait()


def _number(value):
    octets = b""
    while value > 127:
        octets += bytes([value % 128 + 128])
        value //= 128
    return octets + bytes([value])


def _field(tag, value):
    return bytes([tag << 3]) + _number(value)


def _message(tag, content):
    return bytes([tag << 3 | 2]) + _number(len(content)) + content
