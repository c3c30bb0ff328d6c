"""Scenarios whose other side is the module of an earlier commit: has a path become faster or slower?

    python benches/run.py --against 3e44fc5 --server redis-8.2 --scenario hit --repeat 6

Of a commit a module is built by that commit's own `make build`, in target/against, and kept there.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from harness import ROOT, Comparison, Failure, Server, measure_pairs, progress, settled
from scenarios import Goal, Scenario

QUICK = re.compile(r"CARGO_PROFILE_|CARGO_INCREMENTAL$|PINION_MODULE$|MAKE|MFLAGS$")  # no part of a release build


@dataclass(frozen=True)
class Against:
    """A scenario, and an earlier module in the place of its other side."""

    scenario: Scenario
    file: Path  # of that module
    group: str = "against"
    goal: Goal = Goal()

    @property
    def name(self) -> str:
        return f"against-{self.scenario.name}"

    @property
    def description(self) -> str:
        return self.scenario.description

    @property
    def requests(self) -> int:
        return self.scenario.requests

    @property
    def unit(self) -> str:
        return self.scenario.unit

    @property
    def only(self) -> str:
        return self.scenario.only

    def measure(self, binary: Path, repeat: int, requests: int) -> dict[str, Any]:
        """As `Scenario.measure`: the earlier module is the side that is called vanilla there.

        # Raises `Failure`.
        """
        scenario = self.scenario
        with (
            scenario.surroundings(binary) as around,
            Server(binary, "vanilla", module=scenario.other_script is not None) as vanilla,
            Server(binary, "earlier", module=True, file=self.file) as earlier,
            Server(binary, "module", module=True) as module,
        ):
            for server in (earlier, module):
                scenario.prepare(vanilla, server, around)
                scenario.check(vanilla, server)
            result = Comparison(module.version, module.native_hits, requests)
            measure_pairs(result, (scenario.module, earlier), (scenario.module, module), repeat, requests)
            for server in (earlier, module):
                settled(server)
            return {"goal": None, **result.as_json()}


def built(wanted: str) -> tuple[Path, str]:
    """The module of a commit, or a file that is one; and what to call it.

    # Raises `Failure`: there is no such commit, or it cannot be built.
    """
    if Path(wanted).is_file():
        return Path(wanted).resolve(), Path(wanted).name
    commit = git("rev-parse", "--short=12", "--verify", f"{wanted}^{{commit}}")
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve() / "against" / commit
    tree, file = target / "tree", target / "build" / "release" / "libpinion.so"
    if not file.exists():
        if not tree.exists():
            git("worktree", "add", "--detach", str(tree), commit)
        progress(f"building the module of {commit} in {target}")
        environment = {name: value for name, value in os.environ.items() if not QUICK.match(name)}
        environment["CARGO_TARGET_DIR"] = str(target / "build")
        log = target / "build.log"
        with log.open("wb") as output:
            made = subprocess.run(["make", "build"], cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT)
        if made.returncode != 0:
            raise Failure(f"the module of {commit} could not be built: see {log}")
    return file, commit


def git(*words: str) -> str:
    done: Optional[subprocess.CompletedProcess[str]] = None
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise Failure(f"git {' '.join(words)}: {said.strip()}") from None
    return done.stdout.strip()
