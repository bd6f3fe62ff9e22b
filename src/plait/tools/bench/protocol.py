"""Commands as JSON lines between the driver and its workers.

The standard library alone: DGL's interpreter runs this file too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., Any]


def serve(commands: Mapping[str, Command], explain: Callable[[BaseException], str | None]) -> None:
    """Answers {"do": name, ...} from stdin with {"ok": result} or {"error": text} until stdin ends.

    `explain` gives the text for an error, or None for one that is the worker's own bug and ends it.
    """
    # what libraries print must not get between the answers: they write to stderr from here on
    answers = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        command = commands[request.pop("do")]
        try:
            answer = {"ok": command(**request)}
        except Exception as error:
            text = explain(error)
            if text is None:
                raise
            answer = {"error": text}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
