"""``./lab fetch MODEL`` with the real client of the hub, against a hub on loopback: what arrives, and gated models."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fetched import GATED, MODEL, SHARDS, WANTED, Fetch, assert_whole, folder_of, left
from loopback_hub import ACCESS, COMMIT, NO_ACCESS, Fault, Hub, Repository, git_sha1

from labkit.checkpoints.fetch.checkpoint_directory import MANIFEST
from labkit.checkpoints.fetch.dummy_weights import METADATA, dummy_fault
from labkit.checkpoints.headers import read_checkpoint
from labkit.checkpoints.known_models import implied_shapes, resolve
from labkit.system.labs import ROOT

# --- What arrives --------------------------------------------------------------------------------------------------------


def test_a_load_s_files_arrive_and_are_held_against_the_hub_s_own_hashes(
    fetch: Fetch, hub: Hub, files: dict[str, bytes], cache: Path
) -> None:
    ran = fetch(MODEL)
    folder = folder_of(ran)
    assert_whole(folder, files)
    assert left(cache) == [folder.name] == ["tiny--llama"]
    assert (ran.told["weights"], ran.told["commit"], ran.told["revision"]) == ("real", COMMIT, "main")
    assert COMMIT in (folder / "README.md").read_text()
    entries = json.loads((folder / MANIFEST).read_text())["files"]
    assert entries[SHARDS[0]] == {"bytes": len(files[SHARDS[0]]), "sha256": hashlib.sha256(files[SHARDS[0]]).hexdigest()}
    assert entries["config.json"] == {"bytes": len(files["config.json"]), "git sha1": git_sha1(files["config.json"])}
    assert sorted(hub.files_sent()) == sorted(WANTED)
    linked = (folder / SHARDS[0]).stat()
    assert linked.st_nlink == 2, "the weights are on disk once"
    assert (folder / "config.json").stat().st_nlink == 1, "an editor that writes in place leaves the client's cache alone"
    assert linked.st_mode & 0o777 == 0o644


def test_git_s_own_hash_is_the_one_of_small_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    by_git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert git_sha1(b"{}") == by_git


def test_the_script_does_what_the_command_does(
    environment: dict[str, str], hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    script = (ROOT / "scripts" / "download_llama.py").read_text()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "download_llama.py").write_text(script)
    (tmp_path / "lab").write_text("import sys; print(sys.argv[1:])")
    done = subprocess.run(
        [sys.executable, tmp_path / "scripts" / "download_llama.py", MODEL, "--json"], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(["fetch", MODEL, "--json"])


def test_what_is_there_costs_one_request_and_a_moved_branch_is_told(fetch: Fetch, hub: Hub) -> None:
    folder = folder_of(fetch(MODEL))
    hub.asked.clear()
    assert folder_of(fetch(MODEL)) == folder
    # The client asks for /api/agent-harnesses as well, once a day, for its own user agent.
    asked = [(asked.method, asked.path) for asked in hub.asked if MODEL in asked.path]
    assert asked == [("HEAD", f"/{MODEL}/resolve/main/config.json")]
    hub.repositories[MODEL].commit = "a" * 40
    moved = fetch(MODEL)
    assert "main of tiny/llama is now commit aaaaaaaaaaaa; this directory holds 5f0b02c75b57 and is kept" in moved.said
    assert moved.told["commit"] == COMMIT


def test_another_revision_has_another_directory(fetch: Fetch, hub: Hub, cache: Path) -> None:
    folder_of(fetch(MODEL))
    assert fetch(MODEL, "--revision", "v1").told["revision"] == "v1"
    assert left(cache) == ["tiny--llama", "tiny--llama@v1"]
    assert len(hub.files_sent()) == len(WANTED), "the same commit: the client's cache had all of it"


def test_a_commit_can_be_asked_for_by_its_name(fetch: Fetch) -> None:
    assert fetch(MODEL, "--revision", COMMIT).told["commit"] == COMMIT


# --- Gated, and what takes its place --------------------------------------------------------------------------------------


def test_gated_without_a_token_gives_dummy_weights_in_the_true_shapes(fetch: Fetch, hub: Hub, cache: Path) -> None:
    ran = fetch(GATED, "--layers", "1")
    folder = folder_of(ran)
    assert "is gated, and there is no token: ask for access on" in str(ran.told["why"])
    assert "put it into HF_TOKEN" in ran.said
    assert "DUMMY" in ran.said
    config = resolve("llama-3.2-1b").config | {"num_hidden_layers": 1}
    assert {name: tensor.shape for name, tensor in read_checkpoint(folder).items()} == implied_shapes(config)
    assert json.loads((folder / "config.json").read_text()) == config
    assert "DUMMY" in (folder / "README.md").read_text()
    raw = (folder / "model.safetensors").open("rb")
    with raw:
        header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
    assert header["__metadata__"] == METADATA
    assert dummy_fault(folder / "model.safetensors") is None
    assert left(cache) == [f"{GATED.replace('/', '--')}-dummy-1-layers"]
    assert hub.files_sent() == [], "the list of files is public, and nothing was asked for in vain"


def test_gated_for_this_token_is_told_apart(fetch: Fetch) -> None:
    ran = fetch(GATED, "--layers", "1", HF_TOKEN=NO_ACCESS)
    assert "is gated, and your token has no access: ask for it on" in str(ran.told["why"])
    assert ran.told["weights"] == "dummy"


@pytest.mark.parametrize("how", ["variable", "store"])
def test_with_access_the_real_weights_come_and_the_token_goes_nowhere(
    how: str, fetch: Fetch, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    if how == "store":
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text(ACCESS + "\n")
    ran = fetch(GATED, **({"HF_TOKEN": ACCESS} if how == "variable" else {}))
    assert_whole(folder_of(ran), files)
    assert {asked.token for asked in hub.asked if "/resolve/" in asked.path} == {ACCESS}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != tmp_path / "hf" / "token"]
    assert len(written) > len(WANTED)
    assert not [path for path in written if ACCESS.encode() in path.read_bytes()]
    assert ACCESS not in ran.said + json.dumps(ran.told)


def test_no_message_repeats_the_token(fetch: Fetch, hub: Hub) -> None:
    hub.faults = [Fault(403, r".*", headers={"X-Error-Message": f"Bearer {ACCESS} is\x07 not welcome"})]
    ran = fetch(GATED, HF_TOKEN=ACCESS)
    assert ran.status == 1
    assert "is forbidden (403: Bearer (token) is\\x07 not welcome)" in ran.said
    broken = fetch(GATED, HF_TOKEN="hf_secret\tsecond")
    assert broken.status == 1
    assert "the token (16 characters) holds a space or a character that no token has" in broken.said
    assert "hf_secret" not in broken.said


def test_the_dummy_gives_way_to_the_real_weights_once_there_is_access(
    fetch: Fetch, files: dict[str, bytes], tmp_path: Path
) -> None:
    to = tmp_path / "llama"
    fetch(GATED, "--to", str(to), "--layers", "1")
    (to / "notes.txt").write_text("mine")
    assert (to / "model.safetensors").exists()
    folder_of(fetch(GATED, "--to", str(to), HF_TOKEN=ACCESS))
    assert (to / "notes.txt").read_text() == "mine"
    (to / "notes.txt").unlink()
    assert_whole(to, files)


def test_a_gated_model_that_is_not_known_here_has_no_dummy(fetch: Fetch, hub: Hub, cache: Path) -> None:
    hub.repositories["tiny/secret"] = Repository({}, gated=True)
    ran = fetch("tiny/secret")
    assert ran.status == 1
    assert "tiny/secret is gated" in ran.said
    assert "There are no dummy weights either, because its shapes are not known" in ran.said
    assert left(cache) == []


def test_fallback_none_takes_nothing(fetch: Fetch, cache: Path) -> None:
    assert fetch(GATED, "--fallback", "none").status == 1
    assert left(cache) == []


@pytest.mark.parametrize(
    ("arguments", "fault", "sentence"),
    [
        (["meta-llama/Llama-3.2-1X"], None, "(a private one looks the same without a token); did you mean meta-llama/"),
        ([MODEL, "--revision", "v9"], None, "tiny/llama has no revision 'v9'"),
        ([GATED], Fault(503, r".*"), "the hub cannot serve meta-llama/Llama-3.2-1B now (503)"),
        ([GATED], Fault(429, r".*"), "the hub refuses more requests for now (429"),
        ([GATED], Fault(403, r".*"), "access to meta-llama/Llama-3.2-1B is forbidden (403)"),
        ([GATED], Fault(200, r".*"), "does not answer as a hub does; look at HF_ENDPOINT"),
        ([MODEL, "--layers", "x"], None, "Invalid value for '--layers'"),
        (["tiny//llama"], None, "'tiny//llama' is no hub id"),
        ([MODEL, "--revision", "../../x"], None, "'../../x' is no revision"),
        (["../../etc"], None, "'../../etc' is no hub id"),
        (["llama-3-8b"], None, "fetch takes the hub's id (meta-llama/Meta-Llama-3-8B or"),
        (["smollm2", "--layers", "2"], None, "smollm2 comes from the package index, in one version with all its layers"),
    ],
)  # fmt: skip
def test_what_is_no_gate_never_falls_back_in_silence(
    arguments: list[str], fault: Fault | None, sentence: str, fetch: Fetch, hub: Hub, cache: Path
) -> None:
    hub.faults = [fault] if fault else []
    ran = fetch(*arguments)
    assert ran.status != 0
    assert sentence in ran.said
    assert left(cache) == []


def test_a_token_that_is_not_accepted(fetch: Fetch, cache: Path) -> None:
    ran = fetch(GATED, HF_TOKEN="hf_expired")
    assert ran.status == 1
    assert "the hub does not accept your token (401)" in ran.said
    assert left(cache) == []


def test_nobody_there_and_the_dummy_that_was_asked_for(fetch: Fetch, environment: dict[str, str], cache: Path) -> None:
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    ran = fetch(GATED)
    assert ran.status == 1
    assert "http://127.0.0.1:9 cannot be reached, or the connection broke (ConnectError)" in ran.said
    assert left(cache) == []
    ran = fetch(GATED, "--fallback", "dummy", "--layers", "1")
    assert ran.told["weights"] == "dummy"
    assert "cannot be reached" in str(ran.told["why"])


def test_layers_that_the_model_does_not_have(fetch: Fetch, cache: Path) -> None:
    ran = fetch(GATED, "--layers", "17")
    assert "meta-llama/Llama-3.2-1B has 16 layers; --layers takes 1 to 16, not 17" in ran.said
    assert left(cache) == []
