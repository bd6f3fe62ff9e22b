"""What a compile did and did not do, and why: filled while compiling, read by `plait.explain` and the warnings."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field

from plait.config import environment
from plait.errors import UnsupportedError
from plait.ir.program import Program

log = logging.getLogger("plait")


@dataclass(frozen=True)
class Fallback:
    """A piece of the model that runs as PyTorch would run it. stage: capture, fuse, build or run."""

    stage: str
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


@dataclass
class Record:
    """One captured graph: its programs by direction, what is kept for the backward, what was moved, what fell back."""

    programs: dict[str, list[Program]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    structure: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fallbacks: list[Fallback] = field(default_factory=list)
    strict: bool | None = None

    def note(self, line: str) -> None:
        """Something left as it was, by design or for want of a rule; not a failure."""
        if line not in self.notes:
            self.notes.append(line)
            log.info("%s", line)

    def is_strict(self) -> bool:
        return environment().strict if self.strict is None else self.strict

    def fall_back(self, stage: str, reason: str) -> None:
        """Records a fallback and warns once; in strict mode it is an error."""
        fallback = Fallback(stage, reason)
        if fallback in self.fallbacks:
            return
        self.fallbacks.append(fallback)
        if self.is_strict():
            raise UnsupportedError(str(fallback))
        warnings.warn(f"plait: {fallback}\n  This part runs as PyTorch runs it; plait.explain shows what is fused.", stacklevel=2)


RECORDS: list[Record] = []
_KEPT = 64


def new_record(strict: bool | None) -> Record:
    """A record for a capture that begins; the last ones are kept for `plait.explain`."""
    record = Record(strict=strict)
    RECORDS.append(record)
    del RECORDS[:-_KEPT]
    return record
