"""
`llm_model` with real files and a real web server, in this process.
"""

import collections
import hashlib
import http.server
import logging
import os
import threading
from unittest.mock import create_autospec

import pytest
import tenacity
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _modules import llm_config
from _modules import llm_model as llm_model_module

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"other" * 400000
Usage = collections.namedtuple("Usage", "free")


@pytest.fixture
def llm_model(configure_loader, platform, tmp_path, monkeypatch):
    platform["site"]["root"] = str(tmp_path / "root")
    # Salt keeps what is logged until pytest has closed the stream that it goes to.
    monkeypatch.setattr(llm_model_module, "log", create_autospec(logging.Logger, instance=True))
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    salt = {"llm_config.platform": create_autospec(llm_config.platform, return_value=platform)}
    return configure_loader(llm_model_module, salt=salt)


@pytest.fixture
def models(tmp_path):
    return tmp_path / "root" / "models"


class Shelf(http.server.BaseHTTPRequestHandler):
    """Serves ``content`` with ranges; ``troubles`` are what goes wrong, request by request."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def answer(self, body=True):
        server = self.server
        server.asked.append((self.command, self.headers.get("Range")))
        trouble = server.troubles.pop(0) if server.troubles and body else None
        if isinstance(trouble, int):
            self.send_error(trouble)
            return
        content = server.content
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if trouble == "no ranges":
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            end = start + (len(content) - start) // 2 if trouble == "break" else None
            self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def shelf():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    server.content, server.troubles, server.asked = CONTENT, [], []
    server.url = f"http://127.0.0.1:{server.server_port}/models/qwen.gguf"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def parts(models):
    return sorted(path.name for path in models.iterdir())


def test_bring_downloads(llm_model, models, shelf):
    assert llm_model.bring("qwen", SHA256, url=shelf.url) == SHA256
    file = models / "qwen.gguf"
    assert file.read_bytes() == CONTENT
    assert file.stat().st_mode & 0o777 == 0o444
    assert models.stat().st_mode & 0o005 == 0o005
    assert parts(models) == [".qwen.json", "qwen.gguf"]
    assert llm_model.list_() == ["qwen"]


def test_bring_takes_a_checksum_in_capitals(llm_model, shelf):
    assert llm_model.bring("qwen", SHA256.upper(), url=shelf.url) == SHA256


def test_bring_goes_on_where_the_connection_broke(llm_model, models, shelf):
    shelf.troubles += ["break", "break", 503, 429]
    llm_model.bring("qwen", SHA256, url=shelf.url)
    assert (models / "qwen.gguf").read_bytes() == CONTENT
    ranges = [asked for _, asked in shelf.asked]
    half = len(CONTENT) // 2
    later = f"bytes={half + half // 2}-"
    assert ranges == [None, f"bytes={half}-", later, later, later]


def test_bring_goes_on_where_an_earlier_run_ended(llm_model, models, shelf):
    models.mkdir(parents=True)
    (models / ".qwen.gguf.part").write_bytes(CONTENT[:1000])
    llm_model.bring("qwen", SHA256, url=shelf.url)
    assert shelf.asked == [("GET", "bytes=1000-")]
    assert (models / "qwen.gguf").read_bytes() == CONTENT


def test_bring_takes_what_an_earlier_run_had_whole(llm_model, models, shelf):
    models.mkdir(parents=True)
    (models / ".qwen.gguf.part").write_bytes(CONTENT)
    llm_model.bring("qwen", SHA256, url=shelf.url)
    assert parts(models) == [".qwen.json", "qwen.gguf"]


@pytest.mark.parametrize("rest", [OTHER[:1000], OTHER + CONTENT])
def test_bring_begins_anew_when_the_part_is_of_something_else(llm_model, models, shelf, rest):
    models.mkdir(parents=True)
    (models / ".qwen.gguf.part").write_bytes(rest)
    llm_model.bring("qwen", SHA256, url=shelf.url)
    assert (models / "qwen.gguf").read_bytes() == CONTENT
    assert shelf.asked[-1] == ("GET", None)


def test_bring_from_a_server_without_ranges_begins_anew(llm_model, models, shelf):
    models.mkdir(parents=True)
    (models / ".qwen.gguf.part").write_bytes(CONTENT[:1000])
    shelf.troubles.append("no ranges")
    llm_model.bring("qwen", SHA256, url=shelf.url)
    assert (models / "qwen.gguf").read_bytes() == CONTENT


def test_bring_of_something_else_leaves_what_is_there(llm_model, models, shelf):
    llm_model.bring("qwen", SHA256, url=shelf.url)
    shelf.content = OTHER
    expected = f"is not model qwen: its sha256 is {hashlib.sha256(OTHER).hexdigest()}"
    with pytest.raises(CommandExecutionError, match=expected):
        llm_model.bring("qwen", 64 * "0", url=shelf.url)
    assert (models / "qwen.gguf").read_bytes() == CONTENT
    assert parts(models) == [".qwen.json", "qwen.gguf"]


@pytest.mark.parametrize(
    ("troubles", "requests", "message"),
    [
        ([404], 1, "/models/qwen.gguf: 404 Not Found"),
        ([403], 1, "/models/qwen.gguf: 403 Forbidden"),
        ([503] * 20, 6, "/models/qwen.gguf: 503 Service Unavailable"),
        (["break", *[500] * 20], 7, "/models/qwen.gguf: 500 Internal Server Error"),
    ],
)
def test_bring_gives_up(llm_model, shelf, troubles, requests, message):
    shelf.troubles += troubles
    with pytest.raises(CommandExecutionError, match=message):
        llm_model.bring("qwen", SHA256, url=shelf.url)
    assert len(shelf.asked) == requests


def test_bring_hides_what_the_url_says_in_secret(llm_model, shelf):
    shelf.troubles.append(404)
    url = shelf.url.replace("//", "//user:sesame@") + "?token=sesame"
    with pytest.raises(CommandExecutionError) as raised:
        llm_model.bring("qwen", SHA256, url=url)
    assert "sesame" not in str(raised.value)
    assert shelf.url in str(raised.value)


def test_bring_looks_for_room_first(llm_model, models, shelf, monkeypatch):
    usage = Usage(free=llm_model.RESERVE + (1 << 20))
    monkeypatch.setattr(llm_model.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CommandExecutionError, match=r"model qwen needs 2m, 1m are free in"):
        llm_model.bring("qwen", SHA256, url=shelf.url)
    assert parts(models) == []


def test_bring_from_nowhere(llm_model):
    with pytest.raises(CommandExecutionError, match=r"http://127.0.0.1:1/x: .*refused"):
        llm_model.bring("qwen", SHA256, url="http://127.0.0.1:1/x")


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "original.gguf"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(("mode", "linked"), [(0o644, True), (0o600, False)])
def test_bring_of_a_file_of_this_host(llm_model, models, original, mode, linked):
    original.chmod(mode)
    for _ in range(2):
        llm_model.bring("qwen", SHA256, path=str(original))
        file = models / "qwen.gguf"
        assert file.read_bytes() == CONTENT
        assert os.path.samefile(file, original) is linked
        assert file.stat().st_mode & 0o004
        assert original.stat().st_mode & 0o777 == mode
        assert parts(models) == [".qwen.json", "qwen.gguf"]


def test_bring_of_the_wrong_file_of_this_host(llm_model, models, original):
    with pytest.raises(CommandExecutionError, match="original.gguf is not model qwen"):
        llm_model.bring("qwen", 64 * "0", path=str(original))
    assert original.read_bytes() == CONTENT
    assert parts(models) == []


def test_bring_of_a_missing_file(llm_model):
    with pytest.raises(CommandExecutionError, match="source file /nowhere missing on host node1"):
        llm_model.bring("qwen", SHA256, path="/nowhere")


def test_bring_of_a_model_with_a_slash_in_its_name(llm_model, models, shelf):
    llm_model.bring("org/qwen", SHA256, url=shelf.url)
    assert parts(models) == [".org%2Fqwen.json", "org%2Fqwen.gguf"]
    assert llm_model.list_() == ["org/qwen"]
    assert llm_model.checksum("org/qwen") == SHA256
    assert llm_model.remove("org/qwen") is True
    assert parts(models) == []


def test_bring_of_a_file_that_was_removed_keeps_its_time(llm_model, models, shelf):
    """Containers are replaced for what was written after they had read it."""
    llm_model.bring("qwen", SHA256, url=shelf.url)
    file = models / "qwen.gguf"
    os.utime(file, ns=(1, 1))
    llm_model.note("qwen")
    file.unlink()
    llm_model.bring("qwen", SHA256, url=shelf.url)
    assert file.stat().st_mtime_ns == 1
    file.write_bytes(OTHER)
    llm_model.bring("qwen", SHA256, url=shelf.url)
    assert file.stat().st_mtime_ns > 1


@pytest.mark.parametrize("places", [{}, {"url": "http://a/b", "path": "/c"}])
def test_bring_refuses_none_and_both(llm_model, places):
    with pytest.raises(SaltInvocationError, match="either a url or a path"):
        llm_model.bring("qwen", SHA256, **places)


def test_checksum_reads_a_file_once(llm_model, models, original, monkeypatch):
    assert llm_model.checksum("qwen") is None
    llm_model.bring("qwen", SHA256, path=str(original))
    digest = create_autospec(llm_model._digest, return_value="anew")
    monkeypatch.setattr(llm_model, "_digest", digest)
    assert llm_model.checksum("qwen") == SHA256
    assert not digest.called
    os.utime(models / "qwen.gguf", ns=(1, 1))
    assert llm_model.checksum("qwen") == "anew"


def test_note_spares_the_next_run_the_reading(llm_model, models, monkeypatch):
    models.mkdir(parents=True)
    (models / "qwen.gguf").write_bytes(CONTENT)
    assert llm_model.checksum("qwen") == SHA256
    assert parts(models) == ["qwen.gguf"]
    llm_model.note("qwen")
    monkeypatch.setattr(llm_model, "_digest", create_autospec(llm_model._digest))
    llm_model.note("qwen")
    assert llm_model.checksum("qwen") == SHA256
    assert not llm_model._digest.called


def test_need_of_a_download(llm_model, models, shelf):
    need = llm_model.need("qwen", url=f"{shelf.url}?token=sesame")
    assert (need["source"], need["size"]) == (shelf.url, len(CONTENT))
    assert need["free"] > 0
    assert shelf.asked == [("HEAD", None)]
    assert not models.exists()
    models.mkdir(parents=True)
    (models / ".qwen.gguf.part").write_bytes(CONTENT[:1000])
    assert llm_model.need("qwen", url=shelf.url)["size"] == len(CONTENT) - 1000


@pytest.mark.parametrize(("mode", "size"), [(0o644, 0), (0o600, len(CONTENT))])
def test_need_of_a_file_of_this_host(llm_model, original, mode, size):
    original.chmod(mode)
    need = llm_model.need("qwen", path=str(original))
    assert (need["source"], need["size"]) == (str(original), size)


def test_need_of_what_cannot_be_read(llm_model, shelf):
    shelf.content = b""
    with pytest.raises(CommandExecutionError, match="416"):
        llm_model.need("qwen", url=shelf.url)
    with pytest.raises(CommandExecutionError, match="refused"):
        llm_model.need("qwen", url="http://127.0.0.1:1/x")


def test_remove_leaves_nothing(llm_model, models, shelf):
    llm_model.bring("qwen", SHA256, url=shelf.url)
    (models / ".qwen.gguf.part").touch()
    assert llm_model.remove("qwen") is True
    assert parts(models) == []
    assert llm_model.remove("qwen") is False
