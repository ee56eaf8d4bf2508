"""The toolkit's installer, on hosts whose apt, dnf, curl and nvidia-ctk write down how they were called: real ones need a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "install-nvidia-container-toolkit.sh"
PLACES = ("/usr/share/keyrings", "/etc/apt/sources.list.d", "/etc/yum.repos.d", "/etc/cdi", "/etc/docker")
TOOLS = ("cat", "sed", "sh", "rm", "mv", "cp", "mkdir", "printf")
CALLED = """#!/bin/sh
echo "$(basename "$0") $*" >> {log}
case "$(basename "$0") $1" in
    "curl "*) echo "deb https://nvidia.github.io/libnvidia-container/stable/deb/\\$(ARCH) /" > "$3" ;;
    "gpg "*) cat > /dev/null; for last in "$@"; do :; done; echo key > "$last" ;;
    "nvidia-ctk cdi") echo cdi > "${{3#--output=}}" ;;
    "nvidia-ctk runtime") echo with-nvidia > {root}/etc/docker/daemon.json ;;
    "id -u") echo {uid} ;;
esac
"""


class Machine:
    """A host in a folder: its own PATH, and the places that the script writes to."""

    def __init__(self, folder: Path, *missing: str, manager: str = "apt-get", uid: int = 0) -> None:
        self.root, self.log, self.bin = folder / "root", folder / "log", folder / "bin"
        self.bin.mkdir(parents=True)
        for place in PLACES:
            (self.root / place[1:]).mkdir(parents=True)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(Path("/bin") / tool if (Path("/bin") / tool).exists() else Path("/usr/bin") / tool)
        (self.bin / "basename").symlink_to("/usr/bin/basename")
        for name in {manager, "curl", "gpg", "nvidia-ctk", "nvidia-smi", "docker", "systemctl", "id"} - set(missing):
            (self.bin / name).write_text(CALLED.format(log=self.log, root=self.root, uid=uid))
            (self.bin / name).chmod(0o755)
        text = SCRIPT.read_text()
        for place in PLACES:
            text = text.replace(place, f"{self.root}{place}")
        self.script = folder / "install.sh"
        self.script.write_text(text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", self.script, *arguments],
            env={"PATH": str(self.bin)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def called(self) -> list[str]:
        """What was called and changes a host, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if not line.startswith("id ")]

    def files(self) -> dict[str, str]:
        return {str(path.relative_to(self.root)): path.read_text() for path in self.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("manager", ["apt-get", "dnf"])
def test_it_stops_where_nvidia_cannot_be_reached(manager: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, manager=manager)
    (machine.bin / "curl").write_text("#!/bin/sh\nexit 6\n")
    done = machine.run()
    assert done.returncode == 1
    assert "that step failed" in done.stdout
    assert not [line for line in machine.called() if "toolkit" in line]
    assert machine.files() == {}


@pytest.mark.parametrize("manager", ["apt-get", "dnf"])
def test_it_installs_pinned_packages_registers_docker_and_writes_cdi_and_undo_takes_it_back(manager: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, manager=manager)
    daemon = machine.root / "etc/docker/daemon.json"
    daemon.write_text("as it was")
    before = machine.files()
    done = machine.run()
    assert done.returncode == 0, done.stdout
    called = machine.called()
    assert called[-3:] == [
        "nvidia-ctk runtime configure --runtime=docker",
        f"nvidia-ctk cdi generate --output={machine.root}/etc/cdi/nvidia.yaml",
        "systemctl restart docker",
    ]
    installed = next(line for line in called if line.startswith(f"{manager} install") and "toolkit" in line)
    assert installed.count("1.18.0-1") == 4
    if manager == "apt-get":
        listed = machine.files()["etc/apt/sources.list.d/nvidia-container-toolkit.list"]
        assert listed.startswith(
            f"deb [signed-by={machine.root}/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg] https://nvidia"
        )
    assert daemon.read_text() == "with-nvidia\n"
    assert machine.run().returncode == 0, "twice does no harm"
    undone = machine.run("--undo")
    assert undone.returncode == 0, undone.stdout
    assert machine.files() == before
    assert machine.called()[-1] == "systemctl restart docker"


@pytest.mark.parametrize("arguments", [(), ("--undo",)])
@pytest.mark.parametrize("manager", ["apt-get", "dnf"])
def test_a_dry_run_prints_what_a_run_does_and_does_nothing(manager: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    machine = Machine(tmp_path, manager=manager, uid=1000)
    before = machine.files()
    printed = machine.run("--dry-run", *arguments)
    assert printed.returncode == 0, printed.stdout
    assert (machine.called(), machine.files()) == ([], before)
    steps = [line for line in printed.stdout.splitlines() if line.startswith("+ ")]
    real = Machine(tmp_path / "real", manager=manager)
    told = real.run(*arguments).stdout.replace(str(real.root), str(machine.root))
    assert [line for line in told.splitlines() if line.startswith("+ ")] == steps
    assert len(steps) >= 4


@pytest.mark.parametrize(
    ("missing", "uid", "sentence"),
    [
        ("nvidia-smi", 0, "there is no NVIDIA driver (nvidia-smi); install the driver of your distribution first"),
        ("docker", 0, "there is no docker; install it first"),
        ("apt-get", 0, "this host has neither apt nor dnf"),
        ("nothing", 1000, "must be run by root: put sudo in front, or --dry-run behind"),
    ],
)
def test_what_it_cannot_work_with_is_a_sentence_and_nothing_is_done(
    missing: str, uid: int, sentence: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, missing, uid=uid)
    done = machine.run()
    assert done.returncode == 1
    assert sentence in done.stdout
    assert machine.called() == []


def test_a_step_that_fails_stops_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.bin / "apt-get").write_text("#!/bin/sh\necho E: no such package >&2\nexit 100\n")
    done = machine.run()
    assert done.returncode == 1
    assert "E: no such package" in done.stdout
    assert "that step failed; the reason is above" in done.stdout
    assert not [line for line in machine.called() if line.startswith("nvidia-ctk")]


def test_a_wrong_word_shows_how_it_is_used(tmp_path: Path) -> None:
    done = Machine(tmp_path).run("--help")
    assert done.returncode == 2
    assert "--dry-run        print what would be done" in done.stdout


def test_a_host_without_a_daemon_json_gets_an_empty_one_back_and_a_host_never_touched_keeps_its_own(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    daemon = machine.root / "etc/docker/daemon.json"
    assert machine.run().returncode == machine.run("--undo").returncode == 0
    assert daemon.read_text() == "{}\n"
    daemon.write_text("the user's own")
    assert machine.run("--undo").returncode == 0
    assert daemon.read_text() == "the user's own"
