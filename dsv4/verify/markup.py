"""Markup of the prompt format that must never reach a client: control tokens and the block of calls."""

import re

# any control token (<｜...｜> with full-width bars), the tags of reasoning, and the bars around DSML in any nesting
_MARKUP = re.compile(r"<｜[^｜<>]{1,40}｜>|</?think>|</?｜?DSML｜?[^>]{0,60}>?|｜DSML｜|<｜begin▁of|<｜end▁of")


def leak(*texts: str) -> str:
    """The first piece of markup in any of the texts; "" if there is none."""
    found = next((match for text in texts if (match := _MARKUP.search(text))), None)
    return found[0] if found else ""
