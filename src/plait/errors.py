"""Every exception plait raises. One base; each also inherits the built-in that fits."""

from __future__ import annotations


class PlaitError(Exception):
    """Base of everything plait raises on purpose."""


class OptionError(PlaitError, ValueError):
    """An option that does not exist, or a value it cannot take."""


class MemoryBudgetError(OptionError):
    """A `memory_budget` that no plan of the model fits. smallest: the bytes of the smallest plan that was found."""

    def __init__(self, message: str, smallest: int = 0) -> None:
        super().__init__(message)
        self.smallest = smallest


class IndexMapError(PlaitError, IndexError, RuntimeError):
    """An index map holds an entry outside the rows it points into. torch raises IndexError for a gather, RuntimeError for a
    scatter."""

    @classmethod
    def outside(cls, what: str, entry: int, position: int, num_rows: int) -> IndexMapError:
        """what: the map, in words."""
        valid = f"0 to {num_rows - 1}" if num_rows > 0 else "none"
        return cls(
            f"index map: {what} holds {entry} at position {position}, out of bounds: it points into {num_rows} rows "
            f"(valid: {valid})\n"
            "  If ids start at 1, subtract 1; if rows are missing, pass their number (such as num_nodes)."
        )


class ShapeError(PlaitError, ValueError):
    """Tensors whose shapes do not belong together."""


class CompilerError(PlaitError, RuntimeError):
    """The C++ compiler is missing, or did not accept a generated source."""


class LibraryCacheError(PlaitError, OSError):
    """The directory of built kernels cannot be used, or holds a file that must not be loaded."""


class ProgramError(PlaitError, AssertionError):
    """A program that breaks its own rules: a bug of plait, never of the user."""


class UnsupportedError(PlaitError, NotImplementedError):
    """A piece of a model that plait does not compile. Recorded as a fallback, raised only in strict mode."""


class DataError(PlaitError, ValueError):
    """A data set that is missing, broken or not in the documented format."""


def first_line(error: BaseException) -> str:
    """An error in one line, for a reason that is recorded."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
