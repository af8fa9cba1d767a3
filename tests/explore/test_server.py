import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from regard.cli.explore import run_explorer
from regard.explore.answers import Answers
from regard.explore.server import FILES, KINDS, make_server
from regard.tasks.documents import InputError
from regard.train.budget import Budget

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def port():
    server = make_server("127.0.0.1", 0, Answers(Budget(steps=1)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    told = answer.read()
    connection.close()
    return answer, told


def test_the_page_and_its_parts_ask_for_nothing_from_elsewhere(port):
    assert {"index.html", "style.css", "main.js", "icon.svg"} <= FILES.keys()
    for name in ["", *FILES]:
        answer, told = ask(port, "GET", f"/{name}")
        assert answer.status == 200
        kind = KINDS[f".{name.partition('.')[2] or 'html'}"]
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        named = set(re.findall(r"https?://[\w.]+", told.decode()))
        assert named <= {"http://www.w3.org", "https://arxiv.org", "https://doi.org", "https://bottosson.github.io"}
        assert not re.findall(r"@import|url\(|import\(|src=\"(?!/)", told.decode())
    assert ask(port, "GET", "/../server.py")[0].status == 404


def test_questions_and_refusals_are_json(port):
    answer, told = ask(port, "POST", "/api/describe", json.dumps({"name": "local"}), JSON)
    assert answer.status == 200
    assert json.loads(told)["title"] == "Local window"
    answer, told = ask(port, "POST", "/api/describe", json.dumps({"name": "locale"}), JSON)
    assert "did you mean local" in json.loads(told)["error"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/api/describe", "{", JSON, 400),
        ("/api/describe", "[1]", JSON, 400),
        ("/api/describe", "{}", {}, 404),
        ("/api/nothing", "{}", JSON, 404),
        ("/api/describe", "{}", {**JSON, "Origin": "http://elsewhere.example"}, 404),
        ("/api/describe", "{}", {**JSON, "Host": "elsewhere.example"}, 404),
        ("/api/describe", "", {**JSON, "Content-Length": str(10**9)}, 413),
        ("/api/describe", "", {**JSON, "Content-Length": "-1"}, 413),
    ],
)
def test_what_is_not_from_this_page_is_not_answered(port, path, body, headers, status):
    answer, told = ask(port, "POST", path, body, headers)
    assert answer.status == status
    assert json.loads(told)["error"]


def test_a_defect_is_told_as_one_and_the_server_goes_on(port, monkeypatch, capfd):
    def broken(self):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("regard.explore.answers.card_rows", broken)
    answer, told = ask(port, "POST", "/api/describe", json.dumps({"name": "local"}), JSON)
    assert answer.status == 500
    assert "defect of regard" in json.loads(told)["error"]
    assert "broken on purpose" in capfd.readouterr().err
    monkeypatch.undo()
    assert ask(port, "POST", "/api/describe", json.dumps({"name": "local"}), JSON)[0].status == 200


def test_a_port_that_is_taken_and_addresses_that_are_not_ours(port):
    given = {"open_": False, "budget": "1s"}
    with pytest.raises(InputError, match=rf"port {port} of 127.0.0.1.*--port 0"):
        run_explorer(port=port, host="127.0.0.1", **given)
    with pytest.raises(InputError, match="cannot listen at"):
        run_explorer(port=0, host="192.0.2.1", **given)
    with pytest.raises(InputError, match="--port 70000 is no port"):
        run_explorer(port=70000, host="127.0.0.1", **given)
    with pytest.raises(InputError, match="--budget 'soon' is not a time"):
        run_explorer(port=0, host="127.0.0.1", open_=False, budget="soon")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for one process on Windows")
def test_ctrl_c_ends_it_in_a_line():
    code = "from regard.cli.explore import run_explorer as run; run(port=0, host='localhost', open_=False, budget='1s')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert "http://localhost:" in line, process.stderr.read() if process.poll() else line
    port = int(line.split("http://localhost:")[1].split("/")[0])
    assert ask(port, "GET", "/")[0].status == 200
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "regard explore: stopped\n", "")
    assert time.monotonic() - begun < 20
