"""
An Envoy's administrative interface, behind a Unix socket.
"""

import http.client
import json
import os
import pathlib
import socket


def asked(admin, question):
    """
    Return what the Envoy behind the socket ``admin`` answers, or ``None`` if none is there.
    """
    answer = _answer("GET", admin, question)
    try:
        return None if answer is None else json.loads(answer)
    except ValueError:
        return None


def told(admin, order):
    """
    Give the Envoy behind the socket ``admin`` an order; return whether one is there.
    """
    return _answer("POST", admin, order) is not None


def _answer(method, admin, path):
    connection = _UnixConnection(pathlib.Path(admin))
    try:
        connection.request(method, path)
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return None  # it has ended, and left its socket behind
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """
    HTTP over a Unix socket. The kernel takes a path of 107 bytes at most, so its folder is named by
    a descriptor.
    """

    def __init__(self, path):
        super().__init__("localhost", timeout=2)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        folder = os.open(self.path.parent, os.O_PATH)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self.path.name}")
        finally:
            os.close(folder)
