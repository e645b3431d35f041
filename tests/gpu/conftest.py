"""Lets Triton 3.6's interpreter run with numpy 2.4: it reads scalars the way that numpy dropped.

It also leaves out the interpreter's checks for integer overflow, which GPUs leave out too and which
take half of its time. Not here: anything that a GPU sees.
"""

import dataclasses
import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor

    def _with_scalars(tensor, scope):
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = _with_scalars
    _builder = interpreter.interpreter_builder
    _builder.options = dataclasses.replace(_builder.options, sanitize_overflow=False)
