"""A server that takes what `wandb sync` sends, on this machine, and remembers it.

It answers what wandb 0.31 asks, no more; artifacts of equal content are one, as at wandb.
"""

import gzip
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROJECT = {"id": "P", "name": "tinybert_dist", "entity": {"id": "E", "name": "me"}}


class WandbServer:
    """runs, history rows and artifacts as they came in; `received`: every byte."""

    def __init__(self):
        self.received: list[bytes] = []
        self.runs: dict[str, dict] = {}  # by id: what upsertBucket said, merged
        self.history: dict[str, list[dict]] = defaultdict(list)  # by run id, in order of arrival
        self.artifacts: dict[str, dict] = {}  # by artifact id: name, type, makers
        self.used: dict[str, set[str]] = defaultdict(set)  # run id -> ids of artifacts
        self.files: set[str] = set()
        self.refuses: set[str] = set()  # names of queries
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()

    def environment(self, folder: Path) -> dict[str, str]:
        """What points wandb here, and keeps what it writes of its own in `folder`."""
        folders = {name: str(folder / name) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR")}
        return folders | {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def artifact(self, name: str) -> str:
        """Id of the one artifact of a name."""
        (found,) = [key for key, value in self.artifacts.items() if value["name"] == name]
        return found

    def take(self, path: str, body: bytes):
        """The answer to a request."""
        with self._lock:
            self.received.append(body)
            if path == "/graphql":
                return {"data": self._query(json.loads(body))}
            if match := re.fullmatch(r"/files/(?:\w+/)*([\w-]+)/file_stream", path):
                rows = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                self.history[match[1]] += map(json.loads, rows)
            elif path.startswith("/storage/"):
                self.files.add(path.removeprefix("/storage/"))
            return {}

    def _query(self, request: dict) -> dict:
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
        values = request.get("variables") or {}
        if name in self.refuses:
            return {}
        answer = getattr(self, f"_{name}", None)
        assert answer, f"wandb asks for {name}:\n{request['query']}"
        return answer(**({"input": values["input"]} if "input" in values else {"v": values}))

    def _Viewer(self, v):
        return {"viewer": {"id": "V", "entity": "me", "username": "me", "teams": {"edges": []}}}

    def _ArtifactType(self, v):
        return {"project": {"artifact": None}}

    def _RunResumeStatus(self, v):
        return {"model": {**PROJECT, "bucket": None}}

    def _UpsertBucket(self, v):
        run = self.runs.setdefault(v["name"], {})
        run.update({key: value for key, value in v.items() if value is not None})
        bucket = {"id": f"B{v['name']}", "name": v["name"], "displayName": run.get("displayName")}
        bucket |= {
            "description": None,
            "config": "{}",
            "sweepName": None,
            "project": PROJECT,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def _CreateArtifact(self, input):
        key = f"{input['artifactCollectionName']}:{input['digest']}"
        made = self.artifacts.setdefault(key, {"makers": []})
        made |= {"name": input["artifactCollectionName"], "type": input["artifactTypeName"]}
        made["makers"].append(input["runName"])
        artifact = {"id": key, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, v):
        file = {"id": "F", "uploadUrl": f"{self.url}/storage/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _CreateArtifactFiles(self, input):
        nodes = [
            {
                "storagePath": file["name"],
                "uploadUrl": f"{self.url}/storage/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in input["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, v):
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}

    def _UseArtifact(self, input):
        self.used[input["runName"]].add(input["artifactID"])
        return {"useArtifact": {"artifact": {"id": input["artifactID"]}}}

    def _CreateRunFiles(self, v):
        files = [{"name": file, "uploadUrl": f"{self.url}/storage/{v['run']}/{file}"} for file in v["files"]]
        return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: WandbServer

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        content = json.dumps(self.server_.take(self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST
