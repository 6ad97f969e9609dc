"""The Lua scripts of this package, by name; each file says what it does to which keys.

A line `--include NAME` stands for the text of `lua/NAME.lua`: functions that several scripts share.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

_INCLUDE = re.compile(r"^ *--include (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text and the hash by which Redis knows it."""

    text: str
    sha: str

    def command(self, keys: list[str], args: list[Any]) -> tuple[Any, ...]:
        """The command that runs it on a server that has it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def run(self, client: Any, keys: list[str], args: list[Any]) -> Any:
        """Run it, and give it to the server first when that does not have it."""
        try:
            return client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return client.execute_command("EVAL", self.text, len(keys), *keys, *args)

    async def run_async(self, client: Any, keys: list[str], args: list[Any]) -> Any:
        """The same with an asyncio client."""
        try:
            return await client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return await client.execute_command("EVAL", self.text, len(keys), *keys, *args)


@cache
def script(name: str) -> Script:
    """The script in `lua/NAME.lua`."""
    text = _INCLUDE.sub(lambda line: _text(line[1]), _text(name))
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _text(name: str) -> str:
    return resources.files(__package__ or "").joinpath("lua", f"{name}.lua").read_text()
