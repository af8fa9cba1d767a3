"""Shapes and types of every annotated function of ``regard``, checked at run time under pytest.

jaxtyping's import hook does the work, with three changes. Nothing is checked while dynamo or export traces: there the
checker itself would break the graph. A function that refuses its arguments in words of its own gets to do so: the
checker speaks only where the function would have gone on. And annotations that have no run-time form, such as a plain
Protocol, are left alone.
"""

import functools
import inspect

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_jaxtyped = jaxtyping.jaxtyped
_configured = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def check_types(function, *arguments, **options):
    """beartype, or the function as it is where an annotation cannot be checked."""
    try:
        return _configured(function, *arguments, **options)
    except BeartypeDecorHintException:
        return function


def jaxtyped(function=None, *, typechecker):
    """What the hook puts around every function and class, instead of jaxtyping's own."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not inspect.isfunction(function):
        return function  # the constructor of a dataclass: dynamo cannot trace through a checked one
    checked = _jaxtyped(function, typechecker=typechecker)

    @functools.wraps(function)
    def call(*arguments, **options):
        __tracebackhide__ = True
        if torch.compiler.is_compiling():
            return function(*arguments, **options)
        try:
            return checked(*arguments, **options)
        except jaxtyping.TypeCheckError:
            function(*arguments, **options)
            raise

    return call


def install():
    """From here on, modules of ``regard`` are checked when they are imported."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook("regard", f"{__name__}.{check_types.__name__}")
