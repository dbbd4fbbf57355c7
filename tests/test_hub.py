"""What `resolve` makes of folders, paths and repository ids, against a Hub that runs in the test.

The server below speaks the part of the Hub's protocol that huggingface_hub uses to list and fetch
files, so its real client is tested, in subprocesses: it reads HF_ENDPOINT once, at import.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest
from checkpoint_files import MQA, random_tensors, write_plain

from jaxcoder.errors import CheckpointError
from jaxcoder.hub import resolve

BRANCHES = {"main": "a" * 40, "v2": "b" * 40}
OWN = ("owner/tiny", "bigcode/tiny", "owner/gated")


class FakeHub(BaseHTTPRequestHandler):
    """Serves ``files[repo][commit]``; some repositories answer with an error instead."""

    files: dict[str, dict[str, dict[str, bytes]]]
    requests: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.requests.append(path)
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            self.list_files("/".join(parts[2:4]), parts[4:])
        else:
            self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def list_files(self, repo: str, rest: list[str]) -> None:
        if repo == "owner/broken":
            return self.refuse(418, "Teapot")
        if repo == "owner/forbidden":
            return self.refuse(403, "Forbidden")
        if repo not in self.files:
            return self.refuse(404, "RepoNotFound")
        commit = BRANCHES.get(rest[1], rest[1]) if len(rest) > 1 else BRANCHES["main"]
        if commit not in self.files[repo]:
            return self.refuse(404, "RevisionNotFound")
        files = self.files[repo][commit]
        if rest[:1] == ["tree"]:
            listing: object = [
                {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                for name, content in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            listing = {"id": repo, "sha": commit, "siblings": siblings}
        return self.answer(json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def send_file(self, repo: str, commit: str, name: str) -> None:
        if repo == "owner/gated":  # listed for everyone, as on the Hub
            return self.refuse(401, "GatedRepo")
        content = self.files[repo][commit][name]
        return self.answer(content, {"ETag": f'"{etag(content)}"', "X-Repo-Commit": commit})

    def answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: the default writes to stderr."""


def etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Hub with one checkpoint in two revisions and files that must stay there."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    write_plain(folder, MQA, random_tensors(MQA))
    needed = {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "tokenizer.json": b"{}",
        "generation_config.json": b"{}",
    }
    unneeded = dict.fromkeys(
        ("pytorch_model.bin", "README.md", "modeling.py", "onnx/model.onnx", "tf_model.h5"), b"no"
    )
    main, v2 = needed | unneeded, needed | unneeded | {"tokenizer.json": b'{"version": "v2"}'}
    pickled = {name: main[name] for name in ("config.json", "pytorch_model.bin")}
    FakeHub.files = {repo: {BRANCHES["main"]: main, BRANCHES["v2"]: v2} for repo in OWN}
    FakeHub.files["owner/pickled"] = {BRANCHES["main"]: pickled}
    FakeHub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(endpoint: str, cache: Path, code: str, **environment: str) -> tuple[str, str]:
    """The output and the error output of `code`, run with `resolve` at hand."""
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        [sys.executable, "-c", "from jaxcoder.hub import *\n" + code],
        env=clean
        | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        | environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


REPORT = """
def report(*arguments, **options):
    try:
        print("OK", resolve(*arguments, **options))
    except CheckpointError as exc:
        print(exc)
"""


class Download(NamedTuple):
    """What one process printed and asked for, and the cache it left."""

    output: str
    errors: str
    requests: list[str]
    cache: Path


@pytest.fixture(scope="module")
def download(hub: str, tmp_path_factory: pytest.TempPathFactory) -> Download:
    cache = tmp_path_factory.mktemp("cache")
    FakeHub.requests.clear()
    output, errors = run(
        hub,
        cache,
        "from jaxcoder.checkpoint import load_checkpoint\n"
        "print(resolve('owner/tiny')); print(resolve('owner/tiny', revision='v2'))\n"
        "print(resolve('owner/tiny', local_files_only=True))\n"
        "print(load_checkpoint(resolve('owner/tiny'))[0].n_embd)",
    )
    return Download(output, errors, list(FakeHub.requests), cache)


def test_only_the_needed_files_are_requested_and_the_revision_is_honoured(
    download: Download,
) -> None:
    main, v2, cached = map(Path, download.output.splitlines()[:3])
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    for folder in (main, v2):
        assert {path.name for path in folder.rglob("*")} == expected
    assert cached == main
    assert json.loads((main / "tokenizer.json").read_text()) == {}
    assert json.loads((v2 / "tokenizer.json").read_text()) == {"version": "v2"}
    fetched = {path.split("/")[-1] for path in download.requests if "/resolve/" in path}
    assert fetched == expected
    assert "OpenRAIL" not in download.errors


def test_a_downloaded_checkpoint_loads(download: Download) -> None:
    """The Hub's cache holds links out of the folder; they are followed."""
    assert download.output.splitlines()[3] == "12"


def test_every_refusal_says_what_to_do(hub: str, tmp_path: Path) -> None:
    output, _ = run(
        hub,
        tmp_path,
        REPORT
        + "report('owner/absent'); report('owner/tiny', revision='v9'); report('owner/gated')\n"
        "report('owner/broken'); report('owner/forbidden'); report('owner/pickled')\n"
        "report('tiny name'); report('owner/tiny', local_files_only=True)",
    )
    absent, revision, gated, broken, forbidden, pickled, invalid, cached = output.splitlines()
    assert absent.startswith("owner/absent: no such repository") and "hf auth login" in absent
    assert revision.startswith("owner/tiny at revision 'v9': no such revision")
    assert gated.startswith("owner/gated: the repository is gated (HTTP 401); accept its terms on")
    assert "hf auth login" in gated and "HF_TOKEN" in gated
    assert broken.startswith("owner/broken: the Hub answered HTTP 418")
    assert forbidden.startswith("owner/forbidden: the repository is gated (HTTP 403); accept its")
    assert "`python -m conversion convert SRC DST`" in pickled
    assert "tiny name: neither a folder nor a repository id" in invalid
    assert cached.startswith("owner/tiny: not in the local cache, and local_files_only is set")


@pytest.mark.parametrize(
    ("environment", "happened"),
    [({}, "there is no connection"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
    ids=["no-connection", "offline"],
)
def test_without_a_network_the_cache_serves_and_else_the_remedy_is_named(
    download: Download, environment: dict[str, str], happened: str
) -> None:
    nobody = "http://127.0.0.1:1"
    code = REPORT + "report('owner/tiny'); report('owner/other')"
    output, _ = run(nobody, download.cache, code, **environment)
    cached, other = output.splitlines()
    assert cached == "OK " + download.output.splitlines()[0]
    assert other.startswith(f"owner/other: not in the local cache, and {happened}")
    assert "`hf download owner/other`, or pass a local folder" in other


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "local-files-only"])
def test_a_cached_copy_without_its_weights_is_called_incomplete(
    hub: str, tmp_path: Path, offline: bool
) -> None:
    """A download that was interrupted says nothing about what the repository holds."""
    output, _ = run(hub, tmp_path, REPORT + "report('owner/tiny')")
    (Path(output.strip().removeprefix("OK ")) / "model.safetensors").unlink()
    arguments = "" if offline else ", local_files_only=True"
    environment = {"HF_HUB_OFFLINE": "1"} if offline else {}
    output, _ = run(hub, tmp_path, REPORT + f"report('owner/tiny'{arguments})", **environment)
    assert output.startswith("owner/tiny: the copy in the local cache is incomplete")
    assert "download it" in output and "`hf download owner/tiny`, or pass a local" in output
    # Control: with a network the same call completes it.
    assert run(hub, tmp_path, REPORT + "report('owner/tiny')")[0].startswith("OK ")


def test_the_licence_of_bigcode_weights_is_printed_once_before_a_download(
    hub: str, tmp_path: Path
) -> None:
    output, errors = run(
        hub,
        tmp_path,
        "import sys\n"
        + REPORT
        + "report('bigcode/tiny', local_files_only=True); print('--', file=sys.stderr)\n"
        "report('bigcode/tiny'); report('bigcode/tiny', revision='v2')",
    )
    assert output.count("OK ") == 2
    without, downloads = errors.split("--\n")
    assert "OpenRAIL" not in without
    assert downloads.count("BigCode OpenRAIL-M") == 1
    assert "bigcode-model-license-agreement" in downloads


def test_a_folder_needs_no_huggingface_hub(tmp_path: Path) -> None:
    output, _ = run(
        "http://127.0.0.1:1",
        tmp_path,
        "import sys; sys.modules['huggingface_hub'] = None\n"
        + REPORT
        + f"report({str(tmp_path)!r}); report('owner/tiny')",
    )
    folder, repo = output.splitlines()
    assert folder == f"OK {tmp_path}"
    assert "`pip install huggingface_hub`, or pass a local folder" in repo


def test_an_existing_folder_wins_over_a_repository_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/tiny") == Path("owner/tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/owner") == tmp_path / "owner"


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"revision is 'v2', but .* is a local folder"):
        resolve(tmp_path, revision="v2")


@pytest.mark.parametrize("text", ["./absent", "/absent", "~/absent", "a/b/c", "..", "a\\b", "file"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "file").write_text("")
    monkeypatch.chdir(inner)
    if text == "..":
        assert resolve(text) == Path("..")
        return
    with pytest.raises(CheckpointError, match="expected the folder of a checkpoint"):
        resolve(text)


def test_a_path_object_is_never_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder, expected the folder"):
        resolve(tmp_path / "absent")


def test_a_full_disk_during_the_download_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        CheckpointError, match=r"owner/tiny: the download failed \(OSError: .*No sp"
    ):
        resolve("owner/tiny")
