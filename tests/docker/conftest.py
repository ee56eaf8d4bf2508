"""A real Docker Engine, and the images, built once from what git knows of the work tree and a few files that must not get in."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from docker_engine import BASE, CERTIFICATES, IMAGE, ROOT, SECRET, STRAY, Docker


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def docker() -> Docker:
    """The first client on this machine that can build, if an engine answers it."""
    why = "no docker client is installed"
    for client in dict.fromkeys(
        filter(None, (shutil.which("docker"), "/usr/bin/docker" if Path("/usr/bin/docker").exists() else None))
    ):
        # A newer client builds with a plugin, which may not be there.
        probe = subprocess.run(
            [client, "build", "--help"], env=os.environ | {"DOCKER_BUILDKIT": "1"}, capture_output=True, text=True
        )
        answer = subprocess.run([client, "info"], capture_output=True, text=True)
        if probe.returncode == 0 and answer.returncode == 0:
            return Docker(client)
        why = ((probe if probe.returncode else answer).stderr.strip().splitlines() or [why])[-1]
    pytest.skip(f"NOT RUN, no Docker Engine to build with: {why}")


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows, and of what it will know, with a learner's own files strewn in."""
    tree = tmp_path_factory.mktemp("containers") / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for name, text in STRAY.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


@pytest.fixture(scope="session")
def base(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """A base made on the spot where this machine is Debian and we are root; else None: the one that the Dockerfile names."""
    if docker("image", "inspect", BASE, check=False).returncode == 0:
        return BASE
    if os.getuid() or not shutil.which("debootstrap"):
        return None
    root = tmp_path_factory.mktemp("base") / "root"
    packages = "python3,python3-venv,python3-pip,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root], check=True, capture_output=True
    )
    changes = []
    if "SSL_CERT_FILE" in os.environ or "PIP_CERT" in os.environ:
        shutil.copy(CERTIFICATES, f"{root}{CERTIFICATES}")
        changes = ["--change", f"ENV SSL_CERT_FILE={CERTIFICATES} PIP_CERT={CERTIFICATES}"]
    archive = root.with_suffix(".tar")
    subprocess.run(
        ["tar", "-C", root, "--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*", "-cf", archive, "."], check=True
    )
    shutil.rmtree(root)
    docker("import", *changes, archive, BASE)
    archive.unlink()
    return BASE


@pytest.fixture(scope="session")
def build_arguments(base: str | None) -> Iterator[dict[str, str]]:
    """Build arguments for this machine: the base, and its folder of wheels, which a container reaches over loopback."""
    arguments = {"BASE_IMAGE": base} if base else {}
    if index := os.environ.get("PIP_INDEX_URL"):
        arguments["PIP_INDEX_URL"] = index
    folder = Path(os.environ.get("PIP_FIND_LINKS", ""))
    if not (folder.is_absolute() and folder.is_dir()):
        yield arguments
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield arguments | {"PIP_FIND_LINKS": f"http://127.0.0.1:{server.server_port}/"}
        server.shutdown()


@pytest.fixture(scope="session")
def build(docker: Docker, tree: Path, build_arguments: dict[str, str]) -> Callable[..., str]:
    """Builds a target of the Dockerfile, and returns the image's name."""

    def build(target: str, **more: str) -> str:
        name = f"{IMAGE}-{target}"
        arguments = [word for key, value in (build_arguments | more).items() for word in ("--build-arg", f"{key}={value}")]
        command = [
            "build",
            "--network",
            "host",
            "--target",
            target,
            "-f",
            tree / "docker" / "Dockerfile",
            "-t",
            name,
            *arguments,
            tree,
        ]
        docker(*command, timeout=1200)
        return name

    return build


@pytest.fixture(scope="session")
def image(build: Callable[..., str]) -> str:
    """The cpu image, built where a token is in the environment, as it is on many a machine."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HF_TOKEN", SECRET)
        return build("cpu")
