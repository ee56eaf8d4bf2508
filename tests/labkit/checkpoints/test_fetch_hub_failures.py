"""``./lab fetch MODEL`` against a hub that fails, on a disk that is full, and offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fetched import GATED, MIB, MODEL, SHARDS, Fetch, assert_whole, folder_of, left
from loopback_hub import ACCESS, Fault, Hub, etag

from labkit.checkpoints.headers import INDEX

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
