"""A server of this machine that answers as the hub does to huggingface_hub's upload, and keeps what it was sent.

The client runs in a process of its own: its addresses and the offline switch are read when it is imported, and the
suite's own process opens no sockets.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PUSH = """
import sys
from pathlib import Path
from sp_rerank.errors import SpRerankError
from sp_rerank.storage.hub import check_push, push_folder
folder, repo, kind = sys.argv[1:]
try:
    check_push(repo)
    print(push_folder(Path(folder), repo, kind))
except SpRerankError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class FakeHub:
    """Attributes: the repositories that were asked for, the files of the last commit, and the tokens that came."""

    def __init__(self, status: int = 200) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.tokens.add(self.headers.get("Authorization", ""))
                self.reply(status, {} if status != 200 else hub.answer(self.path, body))

            def do_GET(self) -> None:
                self.reply(404, {})

            def reply(self, code: int, value: dict[str, Any]) -> None:
                data = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/repos/create"):
            asked = json.loads(body)
            self.created.append({key: asked.get(key) for key in ("name", "organization", "type", "visibility")})
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            return {"url": f"{self.url}/{kind}{asked['organization']}/{asked['name']}"}
        if "/preupload/" in path:
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": file["path"], **how} for file in json.loads(body)["files"]]}
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            place = path.removeprefix("/api").partition("/commit/")[0]
            return {"commitUrl": f"{self.url}{place}/commit/0", "commitOid": "0" * 40, "success": True}
        return {}

    def environment(self, token: str) -> dict[str, str]:
        """For a process whose hub this is."""
        path = os.pathsep.join(sys.path)
        return {
            **os.environ, "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "PYTHONPATH": path,
            "HF_TOKEN_PATH": os.devnull, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def push(self, folder: Path, repo: str, kind: str, *, token: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PUSH, str(folder), repo, kind], env=self.environment(token), capture_output=True,
            text=True, check=False, timeout=240,
        )  # fmt: skip

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
