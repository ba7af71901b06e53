# SPDX-License-Identifier: Apache-2.0
"""What is true of a class of transformers, as text that can be compared between releases.

It owns the aspects: parameters, output fields, attributes, and a hash of the code. Which of them a wrapper relies on is
said by the wrapper (`RELIES_ON`), what they were is hf_records.py.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import textwrap
import typing
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any

from torch import nn

# The KV cache in arguments and outputs, as releases call it, the newest name first. Forwards of ours take each of them.
CACHE_NAMES = ("cache", "past_key_values")

# What a wrapper that takes a cache calls of it, and what must stay true of the layers that hold keys and values.
CACHE_MODULE = "transformers.cache_utils"
CACHE_API = (
    "Cache.update",
    "Cache.get_seq_length",
    "Cache.get_mask_sizes",
    "Cache.get_query_offset",
    "DynamicLayer.update",
    "StaticLayer.update",
)
_MASKS = "transformers.masking_utils"

# aspect (forward, output, sets, code, masks, or a name of CACHE_API) -> value; None where it does not exist
Facts = dict[str, str | None]


def facts(cls: type[nn.Module]) -> Facts:
    """What a wrapper copies of `cls`, as installed.

    forward: its parameters with their defaults. output: the fields of the output class that it returns. sets: the
    attributes that __init__ makes. code: a hash of __init__, forward, and what they call in their module. masks: a hash
    of the functions of transformers.masking_utils that these call. An __init__ that is torch's own does not count: it
    differs between releases of torch, and torch.compile replaces it.
    """
    made = next(base for base in cls.__mro__ if "__init__" in vars(base))
    own = [] if made.__module__.startswith("torch.") else [cls.__init__]
    roots, module = [*own, cls.forward], cls.__module__
    with_masks = _reached(roots, cls, module, _MASKS)
    return {
        "forward": signature(cls.forward),
        "output": _fields(output_class(cls)),
        "sets": ", ".join(sorted({name for init in own for name in _set_by(init)})),
        "code": _hash(_reached(roots, cls, module)),
        "masks": _hash({name: text for name, text in with_masks.items() if name.startswith(_MASKS)}),
    }


def takes_cache(cls: type[nn.Module]) -> bool:
    """Whether `cls.forward` takes a KV cache, by any of its names."""
    return not {*CACHE_NAMES}.isdisjoint(inspect.signature(cls.forward).parameters)


def cache_facts() -> Facts:
    """Of each of CACHE_API, its parameters and a hash of its code, as installed."""
    module = importlib.import_module(CACHE_MODULE)
    found: Facts = {}
    for name in CACHE_API:
        owner, _, method = name.partition(".")
        function = getattr(getattr(module, owner, None), method, None)
        code = None if function is None else _hash(_reached([function], None, CACHE_MODULE))
        found[name] = None if function is None else f"({signature(function)}) {code}"
    return found


def output_class(cls: type[nn.Module]) -> type[Any] | None:
    """The output class that `cls.forward` makes, or hands on from its annotation; None for tensors and plain tuples."""
    forward = inspect.unwrap(cls.forward)
    made = [forward.__globals__.get(name) for name in _returned(forward)]
    annotation = forward.__annotations__.get("return")
    for candidate in (*made, annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None


def signature(function: Callable[..., Any]) -> str:
    """`hidden_states, cache=None, **kwargs`: the parameters without self and annotations."""
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name != "self"]
    return str(inspect.Signature(bare))[1:-1]


def _fields(cls: type[Any] | None) -> str | None:
    return None if cls is None else f"{cls.__name__}({', '.join(field.name for field in fields(cls))})"


def _reached(roots: Iterable[Callable[..., Any]], cls: type | None, *modules: str) -> dict[str, str]:
    """Statements by name, of `roots` and of all functions (of `modules`) and methods (of `cls`) that they call."""
    todo: list[Any] = [(function, True) for function in roots]
    seen: dict[str, str] = {}
    while todo:
        function, wanted = todo.pop()
        function = _original(function)
        if not isinstance(function, FunctionType) or not (wanted or function.__module__ in modules):
            continue
        name = function.__qualname__ if function.__module__ != _MASKS else f"{_MASKS}:{function.__qualname__}"
        if name not in seen:
            seen[name], names = _parsed(function)
            owners = (function.__globals__, {} if cls is None else _attributes(cls))
            todo += [(_function(owner[called]), False) for called in names for owner in owners if called in owner]
    return seen


def _original(function: Any) -> Any:
    """`function` without decorators. torch.compile replaces nn.Module.__init__ by a closure over it, in every process
    that compiled something; that is not a change of the class."""
    function = inspect.unwrap(function)
    if getattr(function, "__module__", "") == "torch._dynamo.mutation_guard":
        return inspect.getclosurevars(function).nonlocals.get("init", function)
    return function


def _hash(parts: Mapping[str, str]) -> str | None:
    """Of statements by name; the same for every version of Python. None for nothing.

    Annotations, decorators, docstrings and layout do not count.
    """
    text = "\n".join(f"{name}: {parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:12] if parts else None


def _attributes(cls: type) -> Mapping[str, Any]:
    """The attributes of a class by name, without calling properties."""
    return ChainMap(*(dict(vars(base)) for base in cls.__mro__))


def _function(value: Any) -> Any:
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


@functools.cache
def _returned(function: FunctionType) -> tuple[str, ...]:
    """The names of the functions and classes whose result `function` returns."""
    returned = [node.value for node in ast.walk(_tree(function)) if isinstance(node, ast.Return)]
    made = [value.func for value in returned if isinstance(value, ast.Call)]
    return tuple(called.id for called in made if isinstance(called, ast.Name))


@functools.cache
def _parsed(function: FunctionType) -> tuple[str, frozenset[str]]:
    """The statements of `function` as text, and every name in them."""
    tree = _tree(function)
    return repr(_form(tree)), frozenset(_names(tree))


@functools.cache
def _tree(function: FunctionType) -> ast.AST:
    """The definition of `function`; an empty one where there is no source (then the hash is that of nothing known)."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return ast.Pass()
    try:
        return ast.parse(source).body[0]
    except SyntaxError:  # a string that begins left of the code keeps dedent from working
        return ast.parse("if 1:\n" + inspect.getsource(function)).body[0]


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


_LAYOUT = ("annotation", "returns", "decorator_list", "type_comment", "type_params", "kind", "ctx")


def _form(node: Any) -> Any:
    """A tree as nested tuples, without what computes nothing; absent fields are left out, as Python versions differ."""
    if isinstance(node, list):
        return tuple(_form(item) for item in node if not _is_docstring(item))
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = ((name, value) for name, value in ast.iter_fields(node) if name not in _LAYOUT)
    return (type(node).__name__, *((name, _form(value)) for name, value in parts if value is not None and value != []))


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _set_by(init: Callable[..., Any]) -> Iterator[str]:
    """Attributes of self that `init` assigns, and buffers and parameters that it registers."""
    for node in ast.walk(_tree(_original(init))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_self(node.func.value):
            first = node.args[0] if node.args else None
            if node.func.attr.startswith("register_") and isinstance(first, ast.Constant):
                yield str(first.value)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
