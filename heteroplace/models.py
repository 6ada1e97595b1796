"""Served models: what one instance of each role delivers on each GPU type.

The files in ``models/`` are small and meant to be written by hand; a table from NVIDIA
aiconfigurator can be read in their place.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from heteroplace.errors import InputError
from heteroplace.files import MAX_BYTES, read_bytes, refuse_duplicate_keys, validated
from heteroplace.instance import Name, Noun, Pod, PositiveCount, Shape
from heteroplace.quantity import Positive, parse_number

ALIASES = {
    "a10": ("A10", "NVIDIA-A10"),
    "a100_sxm": ("A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB"),
    "a800_sxm": ("A800-SXM4-80GB", "NVIDIA-A800-SXM4-80GB"),
    "b200_sxm": ("B200", "NVIDIA-B200"),
    "h100_sxm": ("H100", "H100-SXM5-80GB", "NVIDIA-H100-80GB-HBM3"),
    "h20_sxm": ("H20", "NVIDIA-H20"),
    "h200_sxm": ("H200", "NVIDIA-H200"),
    "h800_sxm": ("H800", "NVIDIA-H800"),
    "l20": ("L20", "NVIDIA-L20"),
    "l4": ("L4", "NVIDIA-L4"),
    "l40s": ("L40S", "NVIDIA-L40S"),
}
_SYSTEM = {name.lower(): system for system, names in ALIASES.items() for name in (system, *names)}


def same_gpu(first: str, second: str) -> bool:
    """Whether two names mean the same GPU type, as ``A100-SXM4-80GB`` and ``a100_sxm`` do."""
    one, other = first.lower(), second.lower()
    return _SYSTEM.get(one, one) == _SYSTEM.get(other, other)


class InstanceCapacity(Noun):
    """One way to run an instance of a role and what it delivers.

    Parameters
    ----------
    gpu_type
        GPU type; the common names of a type are equal, see :data:`ALIASES`.
    gpus
        GPUs of one instance, in one node.
    capacity
        Tokens per second: of the prompts for prefill, generated for decode.
    estimated
        True when it was scaled from another GPU type instead of computed from this one's tables.
    """

    gpu_type: Name
    gpus: PositiveCount
    capacity: Positive
    estimated: bool = False

    @property
    def per_gpu(self) -> Fraction:
        """Capacity of one GPU."""
        return self.capacity / self.gpus


class ServedModel(Noun):
    """A model that can be served.

    Parameters
    ----------
    name
        Name of the model.
    source
        Where the capacities come from and under which conditions they hold.
    roles
        The ways to run an instance of each role.
    """

    name: Name
    source: str
    roles: Annotated[
        dict[Name, Annotated[tuple[InstanceCapacity, ...], Field(min_length=1)]],
        Field(min_length=1),
    ]

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "model") -> ServedModel:
        """Parse a served model from JSON text.

        Raises
        ------
        InputError
            If the text is not JSON or not a served model.
        """
        model: ServedModel = validated(lambda: cls.model_validate_json(text), source)
        refuse_duplicate_keys(text, source)
        return model

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> ServedModel:
        """Read a served model from a JSON file of at most ``max_bytes`` bytes.

        Raises
        ------
        InputError
            If the file cannot be read, is too large, is not JSON or not a served model.
        """
        return cls.from_json(read_bytes(path, max_bytes), str(path))

    def shapes(
        self, role: str, node_gpus: Mapping[str, int], per_type: int | None = None
    ) -> tuple[Shape, ...]:
        """Shapes of a role on a fleet, the most capacity per GPU first.

        Parameters
        ----------
        role
            Name of the role.
        node_gpus
            GPUs of the largest node of each GPU type of the fleet.
        per_type
            Keep only the best so many for each GPU type; null keeps all.

        Returns
        -------
        tuple of Shape
            With the fleet's names of the GPU types, one for each type and size; empty if no
            instance fits on the fleet.
        """
        ways: list[tuple[Fraction, str, int, Fraction]] = []
        for gpu_type in sorted(node_gpus):
            best: dict[int, Fraction] = {}
            for way in self.roles.get(role, ()):
                if same_gpu(way.gpu_type, gpu_type) and way.gpus <= node_gpus[gpu_type]:
                    best[way.gpus] = max(way.capacity, best.get(way.gpus, Fraction(0)))
            fitting = [(-best[gpus] / gpus, gpu_type, gpus, best[gpus]) for gpus in best]
            ways.extend(sorted(fitting)[:per_type])
        return tuple(
            Shape(
                name=f"{gpu_type} x{gpus}",
                pods=(Pod(gpu_type=gpu_type, gpus=gpus),),
                capacity=capacity,
            )
            for _, gpu_type, gpus, capacity in sorted(ways)
        )


def load_models(folder: str | os.PathLike[str]) -> tuple[ServedModel, ...]:
    """Read every ``*.json`` in a folder of served models, in the order of their file names.

    Raises
    ------
    InputError
        If the folder holds no served model, one of the files is not one, or two have one name.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise InputError(str(folder), "holds no served model (*.json); name another folder")
    found: dict[str, tuple[Path, ServedModel]] = {}
    for file in files:
        model = ServedModel.from_file(file)
        if model.name in found:
            other = found[model.name][0].name
            raise InputError(f"{file}: name", f"{model.name!r} is in {other} too; rename one")
        found[model.name] = (file, model)
    return tuple(model for _, model in found.values())


# Names made of a cell have a number added and must stay names.
MAX_CELL = 240
_COLUMNS = ("model", "gpu", "role", "gpus_per_instance", "isl", "tokens_per_s_per_instance")


def models_from_csv(
    path: str | os.PathLike[str], isl: int = 2048, max_bytes: int = MAX_BYTES
) -> tuple[ServedModel, ...]:
    """Read a capacity table made with NVIDIA aiconfigurator.

    Parameters
    ----------
    path
        CSV with the columns ``model``, ``gpu``, ``role``, ``gpus_per_instance``, ``isl`` and
        ``tokens_per_s_per_instance``; a ``source`` that starts with ``SOL`` marks an estimate.
    isl
        Prompt length; rows of other lengths are left out.
    max_bytes
        Largest file that is read.

    Returns
    -------
    tuple of ServedModel
        In the order of their names.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, holds a wrong number or no row of that length.
    """
    roles: dict[str, dict[str, list[InstanceCapacity]]] = defaultdict(lambda: defaultdict(list))
    for line, row in read_rows(path, max_bytes, _COLUMNS):
        where = f"{path}, line {line}"
        if positive(row["isl"], where, "isl") != isl:
            continue
        for column in ("model", "gpu", "role"):
            filled(row[column], where, column)
        gpus = positive(row["gpus_per_instance"], where, "gpus_per_instance")
        if gpus.denominator != 1:
            raise InputError(f"{where}, column gpus_per_instance", f"{gpus} is not a whole number")
        capacity = positive(row["tokens_per_s_per_instance"], where, "tokens_per_s_per_instance")
        way = {
            "gpu_type": row["gpu"],
            "gpus": int(gpus),
            "capacity": capacity,
            "estimated": row.get("source", "").startswith("SOL"),
        }
        roles[row["model"]][row["role"]].append(
            validated(partial(InstanceCapacity.model_validate, way), where)
        )
    if not roles:
        raise InputError(str(path), f"holds no row with isl {isl}; ask for another length")
    source = f"{Path(path).name}, prompts of {isl} tokens"
    return tuple(
        ServedModel(
            name=name,
            source=source,
            roles={role: tuple(ways) for role, ways in sorted(roles[name].items())},
        )
        for name in sorted(roles)
    )


def filled(text: str, where: str, column: str, meaning: str = "the cell") -> str:
    """Refuse a cell that is empty or too long for a name; ``where`` names the file and line."""
    if not text:
        raise InputError(f"{where}, column {column}", f"{meaning} is empty; fill it in")
    if len(text) > MAX_CELL:
        raise InputError(
            f"{where}, column {column}",
            f"{meaning} has more than {MAX_CELL} characters; shorten it",
        )
    return text


def positive(text: str, where: str, column: str) -> Fraction:
    """Read a positive number from a table's cell; ``where`` names the file and line."""
    try:
        number = parse_number(text)
    except ValueError as error:
        raise InputError(f"{where}, column {column}", str(error)) from None
    if number <= 0:
        raise InputError(f"{where}, column {column}", f"must be greater than 0, got {text}")
    return number


def read_rows(
    path: str | os.PathLike[str], max_bytes: int, required: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) of a CSV file with a header; cells are stripped.

    Parameters
    ----------
    path
        CSV file in UTF-8.
    max_bytes
        Largest file that is read.
    required
        Columns it must have.

    Raises
    ------
    InputError
        If the file cannot be read, is empty, lacks a column or has a row of another length.
    """
    try:
        text = read_bytes(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"is not UTF-8 text (byte {error.start})") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] | None = None
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            if not any(row):
                continue
            where = f"{path}, line {reader.line_num}"
            if header is None:
                header = row
                _check_header(where, header, required)
            elif len(row) != len(header):
                raise InputError(
                    where, f"has {len(row)} cells, the header has {len(header)} columns"
                )
            else:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}", f"is not CSV: {error}") from None
    if header is None:
        raise InputError(str(path), "is empty; it needs a header and one row per line")


def _check_header(where: str, header: list[str], required: tuple[str, ...]) -> None:
    for column in required:
        if column not in header:
            raise InputError(where, f"lacks the column {column!r}; found: {', '.join(header)}")
    for column in header:
        if header.count(column) > 1:
            raise InputError(where, f"names the column {column!r} twice; rename one")
