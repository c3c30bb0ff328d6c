"""What mkdocs does besides: links that leave the site become text, and the blocks `redis` are shown as a shell's."""

import re
from typing import Any

LEAVING = re.compile(r"\[([^\]]*)\]\((?:\.\./)+(?:README|CHANGELOG|LICENSE|examples|tests|python)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return LEAVING.sub(r"\1", markdown).replace("```redis\n", "```console\n")
