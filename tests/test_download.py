"""Downloads from a server on this machine that cuts connections, lies and refuses."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tutorial_lib.download import DataError, download

CONTENT = bytes(i * i % 251 for i in range(300_000))
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serve `content`; close the connection after `cut` bytes; answer Range if `ranges`."""

    def __init__(self) -> None:
        self.content, self.cut, self.ranges, self.asked = CONTENT, None, True, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/file.bin":
            self.send_error(404)
            return
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append(start)
        start = start if self.server.ranges else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if self.server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "cache" / "file.bin"


def partial(target: Path) -> Path:
    return target.with_name("file.bin.partial")


def test_whole_file(server, target):
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert not partial(target).exists()


def test_a_cut_connection_is_resumed_at_the_byte_where_it_broke(server, target):
    server.cut = 100_000
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert server.asked == [0, 100_000, 200_000]


def test_a_later_call_goes_on_from_what_is_there(server, target):
    server.cut = 10_000
    with pytest.raises(DataError, match="call again to go on from the 50,000 bytes"):
        download(server.url, target, MD5)
    assert not target.exists()
    assert partial(target).read_bytes() == CONTENT[:50_000]
    server.cut = None
    download(server.url, target, MD5)
    assert server.asked[-1] == 50_000
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, target):
    server.ranges = False
    target.parent.mkdir()
    partial(target).write_bytes(CONTENT[:1000])
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT


def test_a_whole_partial_file_only_wants_its_name(server, target):
    target.parent.mkdir()
    partial(target).write_bytes(CONTENT)
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT


def test_a_wrong_sum_is_refused_and_the_next_call_starts_afresh(server, target):
    target.parent.mkdir()
    partial(target).write_bytes(b"of another file" + CONTENT[15:1000])
    with pytest.raises(DataError, match=rf"{server.url} has another MD5 sum than {MD5}"):
        download(server.url, target, MD5)
    assert list(target.parent.iterdir()) == []
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT


def test_a_full_disk_is_one_sentence(server, target):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("expected: only Linux has /dev/full")
    target.parent.mkdir()
    partial(target).symlink_to(full)
    with pytest.raises(DataError, match=r"cannot write .*file\.bin\.partial \(No space left"):
        download(server.url, target, MD5)
    assert not target.exists()


def test_a_missing_file_and_a_missing_server(server, target):
    with pytest.raises(DataError, match="the server says 404"):
        download(f"{server.url}.gone", target, MD5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/file.bin"
    with pytest.raises(DataError, match=r"refused\): check the connection"):
        download(url, target, MD5)


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        download(server.url, tmp_path / "file" / "file.bin", MD5)
