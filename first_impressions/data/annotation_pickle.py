"""The challenge's own files of labels, pickles {trait: {clip: score}}, read without running any code in them."""
import io
import pickle
import pickletools
import struct
from pathlib import Path

from first_impressions.common.command_line import UserError

# The opcodes that a dictionary of names and scores needs. Everything else (among them the ones that allocate whatever
# size the file asks for) is refused before a single one is carried out.
_PICKLE_OPCODES = frozenset("""
    PROTO FRAME STOP MARK POP POP_MARK EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET
    LONG_BINGET STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES FLOAT
    BINFLOAT INT BININT BININT1 BININT2 LONG LONG1 NONE NEWTRUE NEWFALSE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL
    STACK_GLOBAL REDUCE BUILD""".split())


class _Float:
    """Stands in for numpy.dtype: knows only the two float types, and none of numpy's code runs."""

    def __init__(self, code, align=False, copy=False):
        if code not in ("f8", "f4"):
            raise pickle.UnpicklingError(f"numbers of the type {code!r}")
        self.format = {"f8": "<d", "f4": "<f"}[code]

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.format = ">" + self.format[1]


def _float_scalar(dtype, data):
    if not isinstance(dtype, _Float):
        raise pickle.UnpicklingError("a numpy scalar without a type")
    return struct.unpack(dtype.format, data.encode("latin1") if isinstance(data, str) else data)[0]


def _latin1(text, encoding):
    """Stands in for codecs.encode, by which Python 3 writes bytes in old pickles."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {"numpy.dtype": _Float, "numpy.core.multiarray.scalar": _float_scalar,
              "numpy._core.multiarray.scalar": _float_scalar, "_codecs.encode": _latin1}


class _LabelUnpickler(pickle._Unpickler):  # the one in Python: the C one allocates memory for any memo index it reads
    """Admits dictionaries, strings, numbers and numpy float scalars; names whatever else a file asks for."""

    def find_class(self, module, name):
        if f"{module}.{name}" not in _STAND_INS:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which labels do not need")
        return _STAND_INS[f"{module}.{name}"]


def read_annotation(path: Path) -> dict[str, dict]:
    """Return {trait: {clip: score}} as the file has them; names and scores are not checked.

    Raises UserError for a file that is damaged or asks for anything else.
    """
    data = path.read_bytes()
    try:
        for opcode, _, position in pickletools.genops(data):
            if opcode.name not in _PICKLE_OPCODES:
                raise pickle.UnpicklingError(f"the operation {opcode.name} at byte {position}, "
                                             "which labels do not need")
        content = _LabelUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can fail in many ways; none of them has run anything
        raise UserError(f"{path}: refused, not a file of labels as the challenge wrote it: {error}; nothing of it was "
                        "run; download it again or write a labels.csv") from None
    if not isinstance(content, dict) or not all(isinstance(scores, dict) for scores in content.values()):
        raise UserError(f"{path}: is not a dictionary {{trait: {{clip: score}}}}; "
                        "download it again or write a labels.csv")
    return content
