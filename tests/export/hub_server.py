"""A stand-in of the hub on this machine: what its own library asks to make a repository and commit files to it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """`status`: answers everything with this error. `asked`: the paths. `files`: name → content, of all commits."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.asked, self.files = 200, list[str](), dict[str, bytes]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        if self.server.status != 200:
            self.answer({"error": "no"}, self.server.status)
        elif self.path.endswith("/preupload/main"):
            modes = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif self.path.split("?")[0].endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"{self.server.address}/ada/dpo/commit/1", "commitOid": "1" * 40, "success": True}
            )
        else:
            self.answer(
                {"url": f"{self.server.address}/ada/dpo", "name": "ada/dpo", "id": "1", "errors": [], "warnings": []}
            )

    def do_GET(self):
        self.server.asked.append(self.path)
        info = {
            "id": "ada/dpo",
            "sha": "1" * 40,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [],
        }
        self.answer(info, self.server.status)

    def answer(self, content: dict, status: int = 200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


@contextmanager
def running() -> Iterator[Hub]:
    """The stand-in, while the block runs."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.shutdown()
