"""A `Program` as text, one value a line, and back.

    program softmax ordered maps(src)
      input x : at(src)[3] float32
      %0 : edge[3] float32 = load_at x
      %1 : row[3] float32 = segment_reduce(reduce=max, init=0.0) %0
      %2 : edge[3] float32 = sub %0, %1
      output shifted = %2

The text says everything about a program: two programs are the same if their texts are.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from plait.errors import ProgramError
from plait.ir import ops
from plait.ir.ops import POINTWISE, Op, Pointwise, Reduce
from plait.ir.program import Input, Node, Output, Program, Space, Type

# --- printing --------------------------------------------------------------------------------------------------------


def to_text(program: Program) -> str:
    """The program as text; the same program gives the same text."""
    numbers = number_values(program)
    lines = [_header(program)]
    lines += [f"  input {_quote(source.name)} : {_input_type(source, program)}" for source in program.inputs]
    lines += [f"  {node_to_text(node, numbers, program)}" for node in numbers]
    lines += [f"  output {_quote(output.name)} = %{numbers[output.value]}" for output in program.outputs]
    return "\n".join(lines) + "\n"


def number_values(program: Program) -> dict[Node, int]:
    """The number behind `%` of every value, in the order of `Program.nodes`."""
    return {node: number for number, node in enumerate(program.nodes())}


def node_to_text(node: Node, numbers: Mapping[Node, int], program: Program) -> str:
    """One value: `%3 : edge[4, 32] float32 = mul %1, %2`."""
    words = [_op_to_text(node.op, program), ", ".join(f"%{numbers[value]}" for value in node.inputs)]
    return f"%{numbers[node]} : {node.type} = {' '.join(word for word in words if word)}"


def _header(program: Program) -> str:
    order = "ordered" if program.ordered else "unordered"
    return f"program {_quote(program.name)} {order} maps({', '.join(_quote(name) for name in program.maps)})"


def _input_type(source: Input, program: Program) -> str:
    maps = "" if source.index_map is None else f"({_name_at(program.maps, source.index_map)})"
    return f"{source.access}{maps}{list(source.shape)} {_dtype_name(source.dtype)}"


def _op_to_text(op: Op, program: Program) -> str:
    if isinstance(op, Pointwise):
        return op.fn
    name = _op_name(type(op))
    if isinstance(op, ops.Const):
        return f"{name} {op.value!r}"
    if isinstance(op, ops.LOADS):
        return f"{name} {_slot_to_text(op, program)}"
    attributes = [
        f"{field.name}={FIELDS[str(field.type)].show(getattr(op, field.name))}"
        for field in dataclasses.fields(op)
        if field.default is dataclasses.MISSING or getattr(op, field.name) != field.default
    ]
    return f"{name}({', '.join(attributes)})" if attributes else name


def _slot_to_text(op: ops.LoadEdge | ops.LoadRow | ops.LoadAt | ops.LoadDense, program: Program) -> str:
    """The input's name; the map too where it is not the input's own (which `verify` does not accept)."""
    text = _name_at(tuple(source.name for source in program.inputs), op.slot)
    own_map = program.inputs[op.slot].index_map if op.slot < len(program.inputs) else None
    if isinstance(op, ops.LoadAt) and op.map != own_map:
        return f"{text} at({_name_at(program.maps, op.map)})"
    return text


def _name_at(names: tuple[str, ...], position: int) -> str:
    """A name that can be found again: `#7` where there is none, or where it is not the first of its kind."""
    if 0 <= position < len(names) and names.index(names[position]) == position:
        return _quote(names[position])
    return f"#{position}"


def _quote(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][\w.]*", name) else json.dumps(name)


def _op_name(op_type: type[Any]) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", op_type.__name__).lower()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- parsing ---------------------------------------------------------------------------------------------------------

_NAME = r'(#\d+|"(?:[^"\\]|\\.)*"|[A-Za-z_][\w.]*)'
_TYPE = r"\[([\d, ]*)\] (\w+)"
_HEADER = re.compile(rf"program {_NAME} (ordered|unordered) maps\((.*)\)")
_INPUT = re.compile(rf"input {_NAME} : (\w+)(?:\({_NAME}\))?{_TYPE}")
_VALUE = re.compile(rf"%(\d+) : (\w+){_TYPE} = (\w+)(?:\((.*?)\))? ?(.*)")
_OUTPUT = re.compile(rf"output {_NAME} = %(\d+)")
_ATTRIBUTE = re.compile(r"(\w+)=(\[[^\]]*\]|[^,]+)")
_SLOT = re.compile(rf"{_NAME}(?: at\({_NAME}\))?")


def parse(text: str) -> Program:
    """The program that `to_text` printed. The grammar is checked here, the program's own rules by `verify`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = _match(_HEADER, lines[0] if lines else "", "program <name> ordered|unordered maps(<names>)")
    maps = tuple(_unquote(name) for name in re.findall(_NAME, header[3]))
    inputs: list[Input] = []
    values: dict[str, Node] = {}
    outputs: list[Output] = []
    for line in lines[1:]:
        if line.startswith("input "):
            inputs.append(_parse_input(line, maps))
        elif line.startswith("output "):
            found = _match(_OUTPUT, line, "output <name> = %<number>")
            outputs.append(Output(_unquote(found[1]), _value(found[2], values, line)))
        else:
            number, node = _parse_value(line, values, tuple(inputs), maps)
            values[number] = node
    return Program(_unquote(header[1]), header[2] == "ordered", maps, tuple(inputs), tuple(outputs))


def _parse_input(line: str, maps: tuple[str, ...]) -> Input:
    found = _match(_INPUT, line, "input <name> : <access>[<sizes>] <dtype>")
    index_map = None if found[3] is None else _position(found[3], maps, line)
    return Input(_unquote(found[1]), _sizes(found[4]), _dtype(found[5], line), found[2], index_map)


def _parse_value(line: str, values: Mapping[str, Node], inputs: tuple[Input, ...], maps: tuple[str, ...]) -> tuple[str, Node]:
    found = _match(_VALUE, line, "%<number> : <space>[<sizes>] <dtype> = <operator> %<number>, ...")
    number, space, sizes, dtype, name, attributes, rest = found.groups()
    if space not in {member.value for member in Space}:
        raise ProgramError(f"parse: expected edge, row or dense, got {space!r} in: {line}")
    type_ = Type(Space(space), _sizes(sizes), _dtype(dtype, line))
    if name in POINTWISE:
        return number, Node(Pointwise(name), _values(rest, values, line), type_)
    op_type = OPS.get(name)
    if op_type is None:
        raise ProgramError(f"parse: no operator is called {name!r}, in: {line}")
    if op_type is ops.Const:
        return number, Node(ops.Const(_number(rest, line)), (), type_)
    if op_type in ops.LOADS:
        return number, Node(_parse_load(op_type, rest, inputs, maps, line), (), type_)
    return number, Node(_parse_attributes(op_type, attributes or "", line), _values(rest, values, line), type_)


def _parse_attributes(op_type: type[Any], text: str, line: str) -> Op:
    given = dict(_ATTRIBUTE.findall(text))
    fields = {field.name: field for field in dataclasses.fields(op_type)}
    name = _op_name(op_type)
    if unknown := sorted(set(given) - set(fields)):
        raise ProgramError(f"parse: {name} has no attribute {', '.join(unknown)}, in: {line}")
    needed = [key for key, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [key for key in needed if key not in given]:
        raise ProgramError(f"parse: {name} needs {', '.join(missing)}, in: {line}")
    values = {}
    for key, value in given.items():
        try:
            values[key] = FIELDS[str(fields[key].type)].read(value)
        except ValueError as error:
            raise ProgramError(f"parse: {name}: {key}: {value!r} is no {fields[key].type}, in: {line}") from error
    op: Op = op_type(**values)
    return op


def _parse_load(op_type: type[Any], text: str, inputs: tuple[Input, ...], maps: tuple[str, ...], line: str) -> Op:
    found = _match(_SLOT, text, "an input's name")
    slot = _position(found[1], tuple(source.name for source in inputs), line)
    if op_type is not ops.LoadAt:
        op: Op = op_type(slot)
        return op
    if found[2] is not None:
        return ops.LoadAt(slot, _position(found[2], maps, line))
    own_map = inputs[slot].index_map if slot < len(inputs) else None
    if own_map is None:
        raise ProgramError(f"parse: the input has no index map, write `at(<map>)` behind its name in: {line}")
    return ops.LoadAt(slot, own_map)


def _match(pattern: re.Pattern[str], text: str, expected: str) -> re.Match[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ProgramError(f"parse: expected {expected}, got: {text}")
    return found


def _value(number: str, values: Mapping[str, Node], line: str) -> Node:
    if number not in values:
        raise ProgramError(f"parse: %{number} is read before it is defined, in: {line}")
    return values[number]


def _values(text: str, values: Mapping[str, Node], line: str) -> tuple[Node, ...]:
    if text and not re.fullmatch(r"%\d+(, %\d+)*", text):
        raise ProgramError(f"parse: expected %<number>, %<number>, ... got {text!r} in: {line}")
    return tuple(_value(number, values, line) for number in re.findall(r"%(\d+)", text))


def _position(name: str, names: tuple[str, ...], line: str) -> int:
    if name.startswith("#"):
        return int(name[1:])
    if _unquote(name) not in names:
        raise ProgramError(f"parse: expected one of {', '.join(names) or 'no names'}, got {name} in: {line}")
    return names.index(_unquote(name))


def _unquote(name: str) -> str:
    return str(json.loads(name)) if name.startswith('"') else name


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in re.findall(r"\d+", text))


def _dtype(name: str, line: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ProgramError(f"parse: no dtype is called {name!r}, in: {line}")
    return dtype


def _number(text: str, line: str) -> float | int | bool:
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    except ValueError as error:
        raise ProgramError(f"parse: expected a number, got {text!r} in: {line}") from error


# --- attributes ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """How an attribute of an operator is printed and read."""

    show: Callable[[Any], str]
    read: Callable[[str], Any]


FIELDS: dict[str, _Field] = {
    "int": _Field(str, int),
    "float": _Field(lambda value: repr(float(value)), float),
    "bool": _Field(str, lambda text: text == "True"),
    "Reduce": _Field(lambda reduce: str(reduce.value), Reduce),
    "tuple[int, ...]": _Field(lambda sizes: str(list(sizes)), _sizes),
}

OPS: dict[str, type[Any]] = {_op_name(op_type): op_type for op_type in ops.Op.__args__ if op_type is not Pointwise}
