"""Triton's interpreter without what it does again and again.

At every call of a device function it patches triton.language as the launch around it has done already: a third of the
time that these tests take, and no change. What is patched already is left alone here until the launch restores it.
"""

import inspect


def patch_once():
    """Replace `_patch_lang`; nothing where this Triton has no such function."""
    from triton.runtime import interpreter

    original, scope_of = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if original is None or scope_of is None or getattr(original, "patches_once", False):
        return
    languages = {id(interpreter.tl), id(interpreter.tl.core)}
    patched = set()

    class Scope(scope_of):
        def restore(self):
            patched.clear()
            self.inner.restore()

    def patch(fn):
        seen = {id(value) for value in fn.__globals__.values() if inspect.ismodule(value)} & languages
        scope = Scope()
        if seen and seen <= patched:
            scope.inner = scope_of()  # as upstream's for a device function: nobody restores it
        else:
            scope.inner = original(fn)
            patched.update(seen)
        return scope

    patch.patches_once = True
    interpreter._patch_lang = patch
