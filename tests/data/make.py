"""Makes the frozen samples of this folder: what this version writes and later ones must read. Run once per format, by hand:

    python tests/data/make.py

A sample that exists is never changed: files of users were written by the version that wrote it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers import Server  # noqa: E402
from requirements import build_wheel  # noqa: E402
from servers import binary  # noqa: E402
from test_persistence import EVERYTHING, TICK  # noqa: E402

# A server without sections that can be left out, and one that has them; both write files that many others read.
KINDS = {"carrier": "redis-7.0", "section": "valkey-8.1"}


def keep(content: bytes, name: str) -> None:
    path = HERE / name
    if path.exists():
        print(f"{name}: exists")
    else:
        path.write_bytes(content)
        print(f"{name}: {len(content)} bytes")


def main() -> None:
    python = "%d.%d" % sys.version_info[:2]
    for kind, name in KINDS.items():
        for what, script in (("dump", EVERYTHING), ("timer", TICK)):
            folder = Path(tempfile.mkdtemp())
            os.environ.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
            server = Server(binary(name), name, folder).start()
            try:
                server.run(script, "ID", "all")
                server.client().save()
                keep((folder / "dump.rdb").read_bytes(), f"{what}-v5-{kind}-python-{python}.rdb")
                if what == "dump" and kind == "carrier":
                    build_wheel(folder, "pinion-demo", "1.0")
                    server.run("1", "REQUIREMENTS", "pinion-demo==1.0")
                    raw = server.client(decode_responses=False)
                    keep(raw.execute_command("RG.PYEXPORTREQ", "pinion-demo==1.0")[1][0], "requirement-v1.bin")
            finally:
                server.cleanup()
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
