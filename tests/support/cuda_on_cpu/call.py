"""Calls a function of a library: what and with which arrays comes pickled, the arrays go back as they are then."""

import ctypes
import pickle
import sys

path, function, sent, order = pickle.loads(sys.stdin.buffer.read())
library = ctypes.CDLL(path)
library.shuffle_blocks(ctypes.c_uint(order))
arrays, arguments = [], []
for kind, value in sent:
    if kind is None:
        arrays.append(ctypes.create_string_buffer(value, len(value)))
        arguments.append(arrays[-1])
    else:
        arguments.append(getattr(ctypes, kind)(value))
result = getattr(library, function)(*arguments)
sys.stdout.buffer.write(pickle.dumps((result, [array.raw for array in arrays])))
