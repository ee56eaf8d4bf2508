"""Shell completion: the scripts call ./lab by the path that was typed, because ``lab`` is not on the PATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def lab(*words: str, **environment: str) -> str:
    command = [sys.executable, "-m", "labkit", *words]
    known = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"} | environment
    return subprocess.run(command, env=known, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("shell", "called", "bound"),
    [
        ("bash", "_LAB_COMPLETE=complete_bash $1", "complete -o default -F _lab_completion lab"),
        ("zsh", "_LAB_COMPLETE=complete_zsh ${words[1]}", "#compdef lab"),
        ("zsh", "loadautofunc ]]; then\n  _lab_completion", "compdef _lab_completion lab"),
        ("fish", "(commandline -cp) (commandline -opc)[1]", "complete --command lab "),
    ],
)
def test_the_shell_calls_what_was_typed(shell: str, called: str, bound: str) -> None:
    script = lab("--show-completion", shell)
    assert called in script
    assert bound in script
    assert "./lab" not in script


def test_the_installed_script_is_the_one_that_is_shown(tmp_path: Path) -> None:
    said = lab("--install-completion", "zsh", HOME=str(tmp_path))
    assert said.startswith(f"zsh completion installed in {tmp_path}/.zfunc/_lab")
    assert (tmp_path / ".zfunc" / "_lab").read_text().strip() == lab("--show-completion", "zsh").strip()


@pytest.mark.parametrize(("typed", "offered"), [("./lab fin", "fingerprint"), ("./lab hint 01 att", "attention")])
def test_it_answers_the_shells(typed: str, offered: str) -> None:
    words = typed.split()
    bash = lab(_LAB_COMPLETE="complete_bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))
    assert bash.split() == [offered]
    assert f'"{offered}"' in lab(_LAB_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=typed)
    fish = lab(_LAB_COMPLETE="complete_fish", _TYPER_COMPLETE_FISH_ACTION="get-args", _TYPER_COMPLETE_ARGS=typed)
    assert fish.split()[0] == offered
