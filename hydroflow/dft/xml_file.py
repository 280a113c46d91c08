"""XML that pw.x and VASP write: a file that is cut, foreign or lacks something is a typed failure naming file and node."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from hydroflow.errors import EngineFailure, FailureCode


class XmlFile:
    """One XML file of an engine.

    Parameters
    ----------
    path
        The file.
    program
        What wrote it, for messages.
    root_tag
        How its root element is called (without its namespace).

    Raises
    ------
    EngineFailure
        ``missing_output``, ``truncated_output`` where it is not well-formed, ``corrupted_output`` where it is of something else.
    """

    def __init__(self, path: Path, program: str, root_tag: str) -> None:
        self.name = f"{path.name} of {program}"
        try:
            self.root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise EngineFailure(FailureCode.truncated_output, f"{self.name} is cut off or malformed: {error}") from error
        except (FileNotFoundError, IsADirectoryError):
            raise EngineFailure(FailureCode.missing_output, f"{program} left no {path.name}") from None
        except (LookupError, ValueError) as error:  # an encoding that is none
            raise self.corrupted(str(error)) from error
        found = self.root.tag.rpartition("}")[2]
        if found != root_tag:
            raise self.corrupted(f"its root is <{found}> instead of <{root_tag}>: a file of another program")

    def corrupted(self, what: str) -> EngineFailure:
        return EngineFailure(FailureCode.corrupted_output, f"{self.name} cannot be read: {what}")

    def node(self, parent: ElementTree.Element, path: str) -> ElementTree.Element:
        """The first element at `path` below `parent`."""
        found = parent.find(path)
        if found is None:
            raise self.corrupted(f"<{parent.tag}> has no {path}")
        return found

    def numbers(self, node: ElementTree.Element, shape: tuple[int, ...] = ()) -> np.ndarray:
        """The numbers in an element's text as an array of `shape` (one -1 as in NumPy); Fortran's overflowed fields are NaN."""
        values = np.array([fortran_float(word) for word in (node.text or "").split()])
        try:
            return values.reshape(shape)
        except ValueError:
            where = " ".join([node.tag, *(f'{k}="{v}"' for k, v in node.items())])
            raise self.corrupted(f"<{where}> has {len(values)} numbers, which do not make {shape or 'one'}") from None

    def number(self, parent: ElementTree.Element, path: str) -> float:
        """The one number at `path`."""
        return float(self.numbers(self.node(parent, path)))

    def integer(self, parent: ElementTree.Element, path: str) -> int:
        """The one whole number at `path`."""
        value = self.number(parent, path)
        if not value.is_integer():
            raise self.corrupted(f"{path} is {value} instead of a whole number")
        return int(value)


def fortran_float(word: str) -> float:
    """Fortran's number; NaN for an overflowed field (``****``) or a word that is none."""
    word = word.strip().replace("D", "E").replace("d", "e")
    try:
        return float(word)
    except ValueError:
        # three-digit exponents lose their letter: 1.234-100
        if match := re.fullmatch(r"([-+]?\d*\.\d+)([-+]\d{3})", word):
            return float(f"{match.group(1)}e{match.group(2)}")
        return float("nan")
