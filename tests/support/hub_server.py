"""A model hub on this machine: the few answers of the hub's HTTP interface that its client asks for. Simulated.

python -m support.hub_server FOLDER: serves FOLDER/OWNER/NAME as repositories, prints its address, then each request. A
repository with a file named GATED asks for a token; what is in a file named LICENSE_TAG is its license.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40
MARKS = ("GATED", "LICENSE_TAG")


class Hub(BaseHTTPRequestHandler):
    """Answers for the repositories of a folder."""

    root: Path

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").removeprefix("datasets/").split("/")
        if parts[:2] == ["api", "models"]:
            self.answer_api(parts[2:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self.answer_file(self.root / parts[0] / parts[1], "/".join(parts[4:]))
        else:
            self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def answer_api(self, parts: list[str]) -> None:
        folder = self.root / parts[0] / parts[1]
        if not folder.is_dir():
            self.refuse(401, "RepoNotFound")
            return
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in MARKS]
        if parts[2:3] == ["tree"]:
            tree = [
                {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": "0" * 40}
                for file in files
            ]
            self.send(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return
        tag = folder / "LICENSE_TAG"
        siblings = [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files]
        record = {
            "id": "/".join(parts[:2]), "sha": COMMIT, "private": False, "siblings": siblings,
            "gated": "manual" if (folder / "GATED").is_file() else False,
            "tags": [f"license:{tag.read_text()}"] if tag.is_file() else [],
        }  # fmt: skip
        self.send(json.dumps(record).encode(), {"Content-Type": "application/json"})

    def answer_file(self, folder: Path, name: str) -> None:
        if (folder / "GATED").is_file():
            self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif not (folder / name).is_file():
            self.refuse(404, "EntryNotFound")
        else:
            content = (folder / name).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", code), ("Content-Length", "0")):
            self.send_header(name, value)
        self.end_headers()

    def send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        print(self.command, self.path, flush=True)


def main(folder: str) -> None:
    Hub.root = Path(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
