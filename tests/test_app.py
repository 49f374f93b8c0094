"""app.py in a real browser: it shows scores, keeps nothing, asks no other machine, answers only at its address."""
import base64
import contextlib
import csv
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import pytest

import app
from conftest import REPOSITORY, listen_to_ctrl_c, run_script_in
from first_impressions.common.constants import TRAITS
from first_impressions.extraction.frames import FrameSettings
from first_impressions.prediction.scoring import load_scorer
from make_media import portrait, write_clip

pytest.importorskip("gradio", reason="pip install -r requirements-app.txt")
EVIL = "<img src=x onerror=alert(1)>&{{7*7}}${8*8}.mp4"  # a file's name


class Server(NamedTuple):
    process: subprocess.Popen
    port: int
    token: str              # in the printed address
    folder: Path            # its TMPDIR
    proxy: socket.socket    # where an HTTP client would turn to reach another machine


@contextlib.contextmanager
def running(trained, folder, *options):
    """Start the page and yield its Server; kill it in the end if the test has not ended it."""
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxies = {name: address for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")}
        port = probe.getsockname()[1]
        probe.close()
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "app.py"), "one", "--port", str(port), "--frames", "3", *options],
            cwd=trained.parent, env={**os.environ, **proxies, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True,
            preexec_fn=listen_to_ctrl_c)
        try:
            address, token = process.stdout.readline().split()[1].split("?token=")
            assert address == f"http://127.0.0.1:{port}/"
            yield Server(process, port, token, folder, proxy)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """The page for small files. Ctrl-C ends it in the end, and nothing is left."""
    folder = tmp_path_factory.mktemp("temporary")
    with running(trained, folder, "--max-megabytes", "1", "--max-minutes", "1") as server:
        yield server
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130
        assert list(folder.iterdir()) == []
        server.proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nothing ever tried to reach another machine
            server.proxy.accept()


def open_page(context, server):
    """Return (page, list that collects errors and requests to anything but the server)."""
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    own = (f"http://127.0.0.1:{server.port}/", "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
    page.goto(f"{own[0]}?token={server.token}")
    page.wait_for_selector("#score")
    return page, faults


def bring(page, paths):
    page.locator("#files input[type=file]").set_input_files([str(path) for path in paths])
    page.wait_for_function("n => document.querySelectorAll('#files tr.file').length == n", arg=len(paths))


def uploads(server):
    """Return the names of all files that the server has on disk, but its lock."""
    # Not Path.rglob, which fails if the server deletes a folder meanwhile.
    return sorted(name for _, _, names in os.walk(server.folder) for name in names if name != ".lock")


def wait_until(condition):
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def far_ends(process):
    """Return the addresses, as hexadecimal text, that a process' TCP sockets listen on or are connected with."""
    inodes = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{process.pid}/net/{name}").read_text().splitlines()[1:]]
    return {row[1 if row[3] == "0A" else 2].split(":")[0] for row in rows if row[9] in inodes}


def table_behind(page, name):
    href = page.locator(f"#results a[download='{name}']").get_attribute("href")
    return list(csv.DictReader(io.StringIO(base64.b64decode(href.partition(",")[2]).decode())))


def test_drop_of_good_and_bad_files(browser, server, tmp_path):
    face = portrait()
    write_clip(tmp_path / "face.mp4", 20, (512, 512), lambda index, width, height: face)
    shutil.copy(tmp_path / "face.mp4", tmp_path / EVIL)
    write_clip(tmp_path / "long.mp4", 75, times=[1000 * index for index in range(75)])
    cv2.imwrite(str(tmp_path / "nobody.png"), np.full((200, 300, 3), 127, np.uint8))
    (tmp_path / "broken.mp4").write_text("no clip")
    (tmp_path / "notes.txt").write_text("not mine")
    (tmp_path / "big.png").write_bytes(bytes(1_500_000))
    names = ["face.mp4", EVIL, "long.mp4", "nobody.png", "broken.mp4", "notes.txt", "big.png"]
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, faults = open_page(context, server)
    bring(page, [tmp_path / name for name in names])
    page.click("#score")
    page.wait_for_selector("#results a.download", timeout=60000)

    assert page.locator("#results article").count() == len(names)
    assert page.locator("#progress").inner_text().strip() == "2 of 7 files scored."
    first = page.locator("#results article").first
    assert first.locator(".row").count() == 5 and "Neuroticism" in first.inner_text()
    assert page.evaluate("[...document.querySelectorAll('#results img')].map(i => i.naturalWidth > 100)") == [True] * 6
    problems = [text.replace("\n", " ") for text in page.locator("#results .problem").all_inner_texts()]
    reasons = ("1.2 minutes", "No face", "FFmpeg", "a clip nor a picture", "2 MB")
    for text, name, reason in zip(problems, names[2:], reasons, strict=True):
        assert name in text and reason in text and "Traceback" not in text
    table = table_behind(page, "scores.csv")
    assert [row["clip"] for row in table][0] == "face.mp4" and [bool(row["problem"]) for row in table] == [
        False, False, True, True, True, True, True]
    assert all(0 <= float(table[0][trait]) <= 1 for trait in TRAITS)
    assert len(table_behind(page, "scores_per_frame.csv")) == 6
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways on a phone"
    assert page.evaluate("document.fonts.size") == 0 and faults == []

    if sys.platform == "linux":
        assert far_ends(server.process) == {"0100007F"}, "listens on, or is connected with, more than 127.0.0.1"
    assert len(uploads(server)) == len(names), "something but the uploads was written"
    page.close()
    assert wait_until(lambda: uploads(server) == []), "files outlive their page"
    context.close()


def test_a_long_recording_is_scored_in_pieces(trained, tmp_path):
    face = portrait(256)
    write_clip(tmp_path / "talk.mp4", 76, (256, 256), lambda index, width, height: face,
               times=[1000 * index for index in range(76)])
    frames = FrameSettings(1, piece=app.PIECE, whole_up_to=app.WHOLE_UP_TO)
    shared = app.App(load_scorer("one", trained), frames, 1, most_bytes=10**9, most_seconds=900, most_files=1)
    *_, (progress, results) = shared.score([str(tmp_path / "talk.mp4")], every_face=False)
    assert "1 of 1 file scored" in progress and "the mean over its pieces of 15 seconds" in results
    table = base64.b64decode(results.partition("base64,")[2].partition('"')[0]).decode()
    assert [row["piece"] for row in csv.DictReader(io.StringIO(table))] == ["", "1", "2", "3", "4", "5"]


def test_visitors_do_not_see_each_other(browser, server, tmp_path):
    cv2.imwrite(str(tmp_path / "mine.png"), portrait(256))
    mine, other = browser.new_context(), browser.new_context()
    page, _ = open_page(mine, server)
    bring(page, [tmp_path / "mine.png"])
    address = page.locator("#files a[href*='file=']").get_attribute("href")
    assert mine.request.get(address).status == 200
    assert other.request.get(address).status == 401
    path = address.partition("file=")[2]
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    body = {"data": [files, None, False], "fn_index": 0, "session_hash": "abc"}
    assert other.request.post(f"http://127.0.0.1:{server.port}/gradio_api/queue/join", data=body).status == 401
    other_page, _ = open_page(other, server)
    cv2.imwrite(str(tmp_path / "theirs.png"), portrait(300))
    bring(other_page, [tmp_path / "mine.png", tmp_path / "theirs.png"])
    for visitor in (page, other_page):  # both are scored at the same time
        visitor.click("#score")
    for visitor, names in ((page, ["mine.png"]), (other_page, ["mine.png", "theirs.png"])):
        visitor.wait_for_selector("#results a.download", timeout=60000)
        assert visitor.locator("#results article h2").all_inner_texts() == names
        assert [row["clip"] for row in table_behind(visitor, "scores.csv")] == names
    other_page.close()
    assert wait_until(lambda: uploads(server) == ["mine.png"])  # which the other page still shows
    other.close()
    mine.close()


def ask(port, token, method, path, host=None, **options):
    """Return (status, text) of a request without a browser that brings a token as cookie, to a host's name."""
    host = host or f"127.0.0.1:{port}"
    cookie = "token_" + "".join(letter if letter.isalnum() else "_" for letter in host)
    headers = {"Host": host, "Cookie": f"{cookie}={token}", **options.pop("headers", {})}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers, **options)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def upload(port, token):
    """Return the path of a file that is uploaded without a browser."""
    body = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
    status, text = ask(port, token, "POST", "/gradio_api/upload", body=body,
                       headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 200
    [path] = json.loads(text)
    assert Path(path).read_text() == "abc"
    return Path(path)


def test_only_who_has_the_address_is_answered(server):
    port, token = server.port, server.token
    for method, path in (("GET", "/"), ("GET", f"/?token={token[:-1]}"), ("GET", "/config"), ("GET", "/monitoring"),
                         ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/gradio_api/queue/data?session_hash=abc"),
                         ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")):
        for host in (None, "evil.example"):
            status, text = ask(port, "none", method, path, host=host)
            assert status == 401 and "address that app.py has printed" in text
    assert ask(port, "none", "GET", f"/?token={token}")[0] == 200
    for host in ("localhost:8080", "127.0.0.1:12345", "[::1]:80", "localhost"):  # other ends of a tunnel
        assert ask(port, token, "GET", "/", host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):  # DNS rebinding
        assert ask(port, token, "GET", "/", host=host) == (400, "Invalid host header")
    assert ask(port, token, "GET", "/gradio_api/file=/etc/passwd")[0] == 403


def test_files_are_deleted_after_an_hour(monkeypatch, tmp_path):
    monkeypatch.setattr("app.KEPT_SECONDS", 1)  # an hour, in this test
    monkeypatch.setattr("app.SWEEP_SECONDS", 1)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    scorer = SimpleNamespace(network=None, checkpoint=SimpleNamespace(neuroticism_is_stability=False))
    shared = app.App(scorer, FrameSettings(1), 1, most_bytes=1000, most_seconds=1, most_files=1)
    blocks = app.launch(shared, port, "secret")
    try:
        path = upload(port, "secret")
        assert tmp_path in path.parents and wait_until(lambda: not path.exists())
    finally:
        blocks.close()


def test_nothing_is_left_after_kills(trained, tmp_path):
    with running(trained, tmp_path) as server:
        assert tmp_path in upload(server.port, server.token).parents
        server.process.kill()
        server.process.wait()
        assert uploads(server) == ["a.png"]
    with running(trained, tmp_path) as server:
        assert uploads(server) == []
        upload(server.port, server.token)
        server.process.terminate()
        assert server.process.wait(30) == 143
        assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(trained, tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('no gradio', name='gradio')")
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        for arguments, complaint, env in (
                (["nobody", "--port", port], "nobody", {}),
                (["one", "--port", taken.getsockname()[1]], "--port", {}),
                (["one", "--port", 70000], "--port", {}),
                (["one", "--port", port], "make app", {"PYTHONPATH": tmp_path})):
            result = run_script_in(trained.parent, "app.py", *arguments, check=False, env={**env, "TMPDIR": tmp_path})
            assert result.returncode == 2 and complaint in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["gradio.py"]
