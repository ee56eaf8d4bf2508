"""``./lab fetch MODEL`` with the hub's real client, against a hub on loopback that behaves, and that does not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loopback_hub import ACCESS, COMMIT, NO_ACCESS, Fault, Hub, Repository, etag, git_sha1, running

from labkit.checkpoints.fetch.checkpoint_directory import MANIFEST, fault_of
from labkit.checkpoints.fetch.dummy_weights import METADATA, dummy_fault, write_dummy
from labkit.checkpoints.headers import INDEX, read_checkpoint
from labkit.checkpoints.known_models import implied_shapes, resolve
from labkit.system.labs import ROOT

MODEL, GATED = "tiny/llama", "meta-llama/Llama-3.2-1B"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WANTED = {"config.json", "generation_config.json", "tokenizer.json", INDEX, *SHARDS}
MIB = 1 << 20


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository as they are: two files of weights with an index, the first of 12 MB, and much that no load needs."""
    folder = tmp_path_factory.mktemp("files")
    write_dummy(folder / SHARDS[0], {"model.layers.0.big.weight": (6, MIB)})
    write_dummy(folder / SHARDS[1], {"model.norm.weight": (64,)})
    index = {"weight_map": {"model.layers.0.big.weight": SHARDS[0], "model.norm.weight": SHARDS[1]}}
    return {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}' * 100,
        INDEX: json.dumps(index).encode(),
        **{name: (folder / name).read_bytes() for name in SHARDS},
        "README.md": b"theirs",
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"a pickle",
        "consolidated.safetensors": b"the same once more",
    }


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with running({MODEL: Repository(dict(files)), GATED: Repository(dict(files), gated=True)}) as hub:
        yield hub


@dataclass
class Ran:
    """How a run of ``./lab fetch`` ended."""

    status: int
    told: dict[str, object]
    said: str


Fetch = Callable[..., Ran]


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """One in which the client knows this hub, no token, and nothing that was fetched before."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "MINI_VLLM_LABS_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def fetch(environment: dict[str, str]) -> Fetch:
    """Runs ``./lab fetch ... --json`` and waits; further variables by name."""

    def run(*arguments: str, **variables: str) -> Ran:
        command = [sys.executable, "-P", "-m", "labkit", "fetch", *arguments, "--json"]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr
        return Ran(done.returncode, json.loads(done.stdout or "{}"), done.stderr)

    return run


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def folder_of(ran: Ran) -> Path:
    assert ran.status == 0, ran.said
    return Path(str(ran.told["directory"]))


def assert_whole(folder: Path, files: dict[str, bytes]) -> None:
    """The directory has what a load needs, byte for byte, and nothing else but our two files."""
    assert {path.name for path in folder.iterdir()} == WANTED | {"README.md", MANIFEST}
    for name in WANTED:
        assert (folder / name).read_bytes() == files[name], name
    assert fault_of(folder, verify=True) is None


def left(cache: Path) -> list[str]:
    """What stands where checkpoints are kept."""
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


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


# --- What breaks on the way ----------------------------------------------------------------------------------------------


def test_a_connection_closed_in_the_middle_goes_on_from_there(fetch: Fetch, hub: Hub, files: dict[str, bytes]) -> None:
    hub.faults = [Fault("close", times=1, after=11 * MIB)]
    assert_whole(folder_of(fetch(MODEL)), files)
    ranges = [asked.range for asked in hub.asked if asked.path.endswith(SHARDS[0]) and asked.method == "GET"]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert ranges[1] == f"bytes={10 * MIB}-", "the client keeps steps of 10 MiB"


def test_a_server_that_ignores_where_to_go_on_from(fetch: Fetch, hub: Hub, files: dict[str, bytes]) -> None:
    hub.faults = [Fault("close", times=1, after=11 * MIB), Fault("ignore range")]
    assert_whole(folder_of(fetch(MODEL)), files)


@pytest.mark.parametrize("what", ["reset", "truncate"])
def test_what_the_client_takes_for_final_is_tried_again(what: str, fetch: Fetch, hub: Hub, files: dict[str, bytes]) -> None:
    hub.faults = [Fault(what, times=2, after=MIB)]
    assert_whole(folder_of(fetch(MODEL)), files)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("reset", "cannot be reached, or the connection broke (ReadError)"),
        ("truncate", "sent fewer bytes of a file of tiny/llama"),
    ],
)
def test_what_stays_broken_ends_in_a_sentence_and_leaves_nothing(
    what: str, sentence: str, fetch: Fetch, hub: Hub, cache: Path
) -> None:
    hub.faults = [Fault(what, after=MIB)]
    ran = fetch(MODEL)
    assert (ran.status, left(cache)) == (1, [])
    assert sentence in ran.said


def test_a_stalled_download_goes_on(fetch: Fetch, hub: Hub, files: dict[str, bytes]) -> None:
    hub.faults = [Fault("stall", times=1, after=11 * MIB)]
    assert_whole(folder_of(fetch(MODEL)), files)


def test_a_server_that_never_sends_is_given_up(fetch: Fetch, hub: Hub, cache: Path) -> None:
    hub.faults = [Fault("stall")]
    ran = fetch(MODEL)
    assert (ran.status, left(cache)) == (1, [])
    assert "stopped answering; look at the network" in ran.said


def test_a_flipped_bit_is_found_and_the_file_fetched_once_more(fetch: Fetch, hub: Hub, files: dict[str, bytes]) -> None:
    hub.faults = [Fault("flip", times=1)]
    assert_whole(folder_of(fetch(MODEL)), files)
    assert hub.files_sent().count(SHARDS[0]) == 2


def test_a_bit_that_flips_each_time_is_refused_and_stays_nowhere(
    fetch: Fetch, hub: Hub, files: dict[str, bytes], cache: Path, tmp_path: Path
) -> None:
    hub.faults = [Fault("flip")]
    ran = fetch(MODEL)
    assert (ran.status, left(cache)) == (1, [])
    assert f"was downloaded twice with other bytes than the hub has (sha256 {etag(SHARDS[0], files[SHARDS[0]])})" in ran.said
    assert not [path for path in (tmp_path / "hf").rglob("blobs/*") if path.stat().st_size > MIB], "nor in the client's cache"
    hub.faults = []
    assert_whole(folder_of(fetch(MODEL)), files)


@pytest.mark.parametrize("how", ["a bit", "cut off", "gone"])
def test_what_is_damaged_later_is_found_and_only_that_is_fetched(
    how: str, fetch: Fetch, hub: Hub, files: dict[str, bytes]
) -> None:
    folder = folder_of(fetch(MODEL))
    shard = folder / SHARDS[0]
    if how == "a bit":
        content = bytearray(files[SHARDS[0]])
        content[5 * MIB] ^= 16
        shard.write_bytes(content)
    elif how == "cut off":
        os.truncate(shard, 5 * MIB)
    else:
        shard.unlink()
    hub.asked.clear()
    ran = fetch(MODEL, "--verify")
    assert f"{folder.name} was damaged ({SHARDS[0]}" in ran.said
    assert_whole(folder, files)
    assert hub.files_sent() == ([] if how == "gone" else [SHARDS[0]]), "what the client's cache still has is taken from there"


def test_a_killed_run_leaves_nothing_that_looks_complete_and_the_next_one_goes_on(
    fetch: Fetch, environment: dict[str, str], hub: Hub, files: dict[str, bytes], cache: Path, tmp_path: Path
) -> None:
    hub.faults = [Fault("stall", path=rf".*{SHARDS[1]}", times=1)]
    command = [sys.executable, "-P", "-m", "labkit", "fetch", MODEL]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        assert hub.stalled.wait(60)
        run.kill()
    assert not (cache / "tiny--llama").exists()
    assert list((tmp_path / "hf").rglob("*.incomplete")), "it had begun"
    assert_whole(folder_of(fetch(MODEL)), files)
    assert hub.files_sent().count(SHARDS[0]) == 1, "what had come whole is not fetched again"
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    assert left(cache) == ["tiny--llama"]


def test_two_runs_at_once_make_one_directory(environment: dict[str, str], hub: Hub, files: dict[str, bytes], cache: Path) -> None:
    hub.faults = [Fault("stall", times=1, after=MIB)]
    command = [sys.executable, "-P", "-m", "labkit", "fetch", MODEL, "--json"]
    runs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert json.loads(said[0]) == json.loads(said[1])
    assert_whole(cache / "tiny--llama", files)
    assert left(cache) == ["tiny--llama"]
    assert hub.files_sent().count(SHARDS[1]) == 1


# --- The disk ------------------------------------------------------------------------------------------------------------


def test_a_disk_that_takes_no_more(fetch: Fetch, cache: Path, file_size_limit: Callable[[int], None]) -> None:
    file_size_limit(4 * MIB)
    ran = fetch(MODEL)
    assert (ran.status, left(cache)) == (1, [])
    assert "the disk is full while tiny/llama is downloaded" in ran.said
    assert "cache elsewhere with HF_HOME" in ran.said


def test_a_disk_that_is_too_small_is_seen_before_the_download(fetch: Fetch, hub: Hub, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path / "hf"], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"NOT RUN, a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        ran = fetch(MODEL)
    finally:
        subprocess.run(["umount", tmp_path / "hf"], check=True)
    assert (ran.status, left(cache)) == (1, [])
    assert "tiny/llama needs 0.01 GB more in" in ran.said
    assert not [name for name in hub.files_sent() if name in SHARDS]


def test_a_directory_of_somebody_elses_is_refused_and_untouched(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    to = tmp_path / "home"
    to.mkdir()
    (to / "thesis.tex").write_text("mine")
    ran = fetch(MODEL, "--to", str(to))
    assert ran.status == 1
    assert "holds thesis.tex (1 in all), which were not made here; nothing there was changed" in ran.said
    assert [path.name for path in to.iterdir()] == ["thesis.tex"]


def test_a_directory_with_another_model_is_refused(fetch: Fetch, tmp_path: Path) -> None:
    fetch(MODEL, "--to", str(tmp_path / "a"))
    ran = fetch(GATED, "--to", str(tmp_path / "a"))
    assert f"{tmp_path}/a holds tiny/llama, real weights; name another directory by --to" in ran.said


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "..\\evil.safetensors", "/etc/evil.safetensors", "a/../../evil.safetensors"]
)
def test_a_file_name_that_climbs_out_of_the_directory(
    name: str, fetch: Fetch, hub: Hub, files: dict[str, bytes], cache: Path
) -> None:
    hub.repositories[MODEL].files = files | {name: b"evil"}
    ran = fetch(MODEL)
    assert (ran.status, left(cache)) == (1, [])
    assert "which is no plain file name; nothing was fetched" in ran.said


def test_an_index_that_climbs_out_of_the_directory(fetch: Fetch, hub: Hub, files: dict[str, bytes], cache: Path) -> None:
    hub.repositories[MODEL].files = files | {INDEX: b'{"weight_map": {"a": "../../evil.safetensors"}}'}
    ran = fetch(MODEL)
    assert (ran.status, left(cache)) == (1, [])
    assert "names '../../evil.safetensors', which is no file beside it" in ran.said


def test_a_model_of_pickles_alone(fetch: Fetch, hub: Hub) -> None:
    hub.repositories[MODEL].files = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    assert "tiny/llama has no safetensors file, only pytorch_model.bin, a pickle" in fetch(MODEL).said


def test_a_repository_that_is_no_checkpoint(fetch: Fetch, hub: Hub) -> None:
    hub.repositories[MODEL].files = {"README.md": b"hello"}
    assert "tiny/llama has no config.json at 'main': it is no checkpoint that vLLM loads" in fetch(MODEL).said


# --- Offline, and what was there before -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["our directory", "the client's cache"])
def test_offline_nobody_is_asked(where: str, fetch: Fetch, hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    folder = folder_of(fetch(MODEL))
    hub.asked.clear()
    ran = fetch(MODEL, *([] if where == "our directory" else ["--to", str(tmp_path / "again")]), HF_HUB_OFFLINE="1")
    assert_whole(folder_of(ran), files)
    assert (folder_of(ran) == folder) == (where == "our directory")
    assert "HF_HUB_OFFLINE is set" in ran.said
    assert hub.asked == []


def test_offline_without_the_model(fetch: Fetch, hub: Hub, cache: Path) -> None:
    ran = fetch(MODEL, HF_HUB_OFFLINE="1")
    assert (ran.status, left(cache), hub.asked) == (1, [], [])
    assert "HF_HUB_OFFLINE is set, and tiny/llama is not in" in ran.said


def test_offline_with_a_cache_that_lacks_a_file(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    folder_of(fetch(MODEL))
    next((tmp_path / "hf").rglob(f"snapshots/*/{SHARDS[1]}")).unlink()
    ran = fetch(MODEL, "--to", str(tmp_path / "again"), HF_HUB_OFFLINE="1")
    assert ran.status == 1
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("where", ["our directory", "the client's cache"])
def test_a_cached_model_that_has_been_gated_since_says_so(
    where: str, fetch: Fetch, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    folder_of(fetch(MODEL))
    hub.repositories[MODEL].gated = True
    ran = fetch(MODEL, *([] if where == "our directory" else ["--to", str(tmp_path / "again")]))
    assert_whole(folder_of(ran), files)
    assert "tiny/llama is gated, and there is no token" in ran.said
    assert ("The checkpoint of an earlier fetch is here and complete" in ran.said) == (where == "our directory")
    assert ("The checkpoint is copied from huggingface_hub's cache" in ran.said) == (where != "our directory")


def test_damaged_and_gated_since_is_told_and_never_overwritten_by_dummies(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    to = tmp_path / "llama"
    folder_of(fetch(GATED, "--to", str(to), HF_TOKEN=ACCESS))
    os.truncate(to / "tokenizer.json", 5)
    for blob in (tmp_path / "hf").rglob("hub"):
        subprocess.run(["rm", "-r", blob], check=True)
    for fallback in ("auto", "dummy"):
        ran = fetch(GATED, "--to", str(to), "--fallback", fallback)
        assert ran.status == 1
        assert "is damaged (tokenizer.json has 5 bytes and should have 1,800)" in ran.said
    assert (to / SHARDS[0]).exists()
