"""Templates run by Go itself, as Ollama runs them: text/template, ``.Messages`` and ``.System``."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")
PROGRAM = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct { Role string; Content string }
type Case struct { Template string; Messages []*Message }
type Result struct { Text string; Error string }

func one(c Case) (r Result) {
    t, err := template.New("").Option("missingkey=zero").Parse(c.Template)
    if err != nil { return Result{"", "parse: " + err.Error()} }
    var system []string
    for _, m := range c.Messages { if m.Role == "system" { system = append(system, m.Content) } }
    var b strings.Builder
    data := map[string]any{"Messages": c.Messages, "System": strings.Join(system, "\\n\\n")}
    if err := t.Execute(&b, data); err != nil { return Result{"", err.Error()} }
    return Result{b.String(), ""}
}

func main() {
    var cases []Case
    if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
    results := []Result{}
    for _, c := range cases { results = append(results, one(c)) }
    json.NewEncoder(os.Stdout).Encode(results)
}
"""


def go_texts(folder: Path, cases: Sequence[tuple[str, Sequence[Any]]]) -> list[tuple[str, str]]:
    """Of each (template, messages): its text, and its error or ""."""
    (folder / "main.go").write_text(PROGRAM, encoding="utf-8")
    given = json.dumps([{"Template": template, "Messages": list(messages)} for template, messages in cases])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "-mod=mod",
        "GO111MODULE": "off",
        "GOPROXY": "off",
    }
    done = subprocess.run(
        ["go", "run", "main.go"], cwd=folder, input=given, text=True, capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [(each["Text"], each["Error"]) for each in json.loads(done.stdout)]
