"""A stand-in for the Hugging Face Hub on this machine: takes commits to data set repositories, and keeps the files.

with Hub() as hub:
subprocess.run(command, env={**os.environ, **hub.environment})
hub.files["owner/name"]  # by path
"""

from __future__ import annotations

import base64
import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

TOKEN = "hf_stand_in"


class Hub:
    """A threaded server on 127.0.0.1 with the few addresses that an upload asks for.

    Attributes:
        files: by repository and path.
        private: by repository, as asked for when it was made.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def address(self) -> str:
        """Its address, as HF_ENDPOINT has it."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which huggingface_hub asks this one."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def __enter__(self) -> Hub:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/main", self.path.partition("?")[0]):
            files = self.hub.files[found[1]].items()
            self._answer([{"type": "file", "path": p, "size": len(data), "oid": "0" * 40} for p, data in files])
        else:
            self._answer({"error": "no such page"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.hub.files.setdefault(repo, {})
            self.hub.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self._answer({"url": f"{self.hub.address}/datasets/{repo}"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(preupload|commit)/main", self.path):
            if found[2] == "preupload":
                paths = [file["path"] for file in json.loads(body)["files"]]
                said = [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in paths]
                return self._answer({"files": said})
            return self._answer(self._commit(found[1], body))
        return self._answer({"error": "no such page"}, 404)

    def _commit(self, repo: str, body: bytes) -> dict[str, Any]:
        files = self.hub.files[repo]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = "1" * 40
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/datasets/{repo}/commit/{oid}"}

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""
