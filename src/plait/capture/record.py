"""What a compile did and did not do, and why: filled while compiling, read by `plait.explain` and the warnings."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch.fx import GraphModule

from plait.capture.launch import Launch
from plait.capture.origin import Origin, Value
from plait.config import Options, environment
from plait.errors import UnsupportedError
from plait.ir.program import Program
from plait.passes.keep import Dropped
from plait.passes.pipeline import wanted

log = logging.getLogger("plait")

MOVED_AT = "\n  at "  # between what was moved and the line of the model


@dataclass(frozen=True)
class Fallback:
    """A piece of the model that runs as PyTorch would run it. stage: capture, fuse, build or run."""

    stage: str
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


@dataclass(frozen=True)
class Prediction:
    """Bytes a training step keeps between forward and backward, and the most it holds at once.

    Beyond its inputs and parameters, and without the structure, which is held once per graph; outputs and gradients count.
    """

    kept_bytes: int
    peak_bytes: int


@dataclass
class Record:
    """One captured graph: its programs by direction, what is kept for the backward, what was moved, what fell back."""

    number: int = 0
    launches: dict[str, list[Launch]] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    moved: list[str] = field(default_factory=list)
    kept: list[Value] = field(default_factory=list)  # what the forward hands to the backward, sizes and all
    structural: list[Value] = field(default_factory=list)  # what is computed once per graph, as `structure` names it
    origins: dict[str, Origin] = field(default_factory=dict)  # program name -> what of the user's model it is
    recomputed: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)  # values over nodes that are computed again to fit the budget
    prediction: Prediction | None = None  # of a training step
    structure: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)  # graph node -> why it was not rewritten
    fallbacks: list[Fallback] = field(default_factory=list)
    num_dumps: int = 0
    is_rewritten: bool = False  # whether anything runs otherwise than PyTorch runs it
    is_worthwhile: bool = True  # whether that is predicted to take less time, see `capture.worth`

    @property
    def programs(self) -> dict[str, list[Program]]:
        """Fused programs by direction: forward, backward, inference."""
        return {direction: [launch.program for launch in launches] for direction, launches in self.launches.items()}

    def wants(self, stage: str) -> bool:
        """Whether a stage runs, or the user asked to stop before it."""
        return wanted(stage, self.options.stop_after)

    def dump(self, stage: str, text: str, suffix: str = "txt") -> None:
        """Writes what a stage made into the directory PLAIT_DUMP names, if any: capture_0/03_hoist.txt."""
        directory = environment().dump
        if directory is None:
            return
        folder = directory / f"capture_{self.number}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{self.num_dumps:02}_{stage}.{suffix}").write_text(text)
        except OSError as error:
            log.warning("PLAIT_DUMP: %s", error)
        self.num_dumps += 1

    def dump_graph(self, stage: str, module: GraphModule) -> None:
        """The same for a graph; printing one takes a while, so it is printed only for somebody."""
        if environment().dump is not None:
            self.dump(stage, module.print_readable(print_output=False))

    def note(self, line: str) -> None:
        """Something left as it was, by design or for want of a rule; not a failure."""
        if line not in self.notes:
            self.notes.append(line)
            log.info("%s", line)

    def note_moved(self, lines: Sequence[str], sources: Mapping[str, str]) -> None:
        """Laws that a pass applied. A line begins with the name of a node, `mm: ...`; sources: where in the user's model the
        nodes of the graph came from."""
        for line in lines:
            source = sources.get(line.partition(":")[0])
            self.moved.append(f"{line}{MOVED_AT}{source}" if source else line)

    def hand_back(self, reason: str) -> None:
        """The graph runs as PyTorch runs it, by design: what was planned for it does not happen."""
        self.launches = {direction: [] for direction in self.launches}
        self.origins, self.prediction = {}, None
        for planned in (self.kept, self.structural, self.recomputed, self.structure, self.notes):
            planned.clear()
        self.note(reason)

    def scratch(self) -> Record:
        """A record for a plan that is tried and thrown away: nothing is written, nothing is warned of."""
        return _Scratch(options=replace(self.options, rest="eager", strict=False))

    def fall_back(self, stage: str, reason: str) -> None:
        """Records a fallback and warns once; in strict mode it is an error."""
        fallback = Fallback(stage, reason)
        if fallback in self.fallbacks:
            return
        self.fallbacks.append(fallback)
        if self.options.is_strict():
            raise UnsupportedError(str(fallback))
        warnings.warn(
            f"plait: {fallback}\n  This part runs as PyTorch runs it; plait.explain shows what is fused.", stacklevel=2
        )


class _Scratch(Record):
    def dump(self, stage: str, text: str, suffix: str = "txt") -> None:
        pass

    def note(self, line: str) -> None:
        pass

    def fall_back(self, stage: str, reason: str) -> None:
        pass


RECORDS: list[Record] = []
_KEPT = 64


_NUMBERS = itertools.count()


def new_record(options: Options) -> Record:
    """A record for a capture that begins; the last ones are kept for `plait.explain`."""
    record = Record(options=options, number=next(_NUMBERS))
    RECORDS.append(record)
    del RECORDS[:-_KEPT]
    return record
