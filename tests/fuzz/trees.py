"""Change an input that is held as a tree: lists, mappings, numbers, texts and bytes, whatever is written from them.

A tree keeps the structure that random bytes would lose at once: what is written from it has right lengths and offsets but
for those that were changed on purpose, so that a change far inside is read, too. It must not know any format.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

Tree: TypeAlias = Any
"""``None``, a truth value, a number, text, bytes, a list of trees, or a mapping of texts to trees."""
Path: TypeAlias = tuple[int | str, ...]

_INTEGERS: Final = (
    *(0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 127, 128, 255, 256, 257, 512, 4095, 4096, 4097, 65535, 65536, 10**6),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30),
    *(-2, -128, -(2**31), -(2**31) - 1, -(2**63), -(2**63) - 1),
)
_FLOATS: Final = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-9, 5e-324, 1e9, 1e18, 1e19, 1e300, 1.8e308, -1e300)
_NO_NUMBERS: Final = (float("nan"), float("inf"), float("-inf"))
_TEXTS: Final = (
    *("", " ", "0", "-1", "true", "null", "nan", "1e999", "9" * 40, "9" * 5000, "1.2.3", "a" * 300, "b" * 9000),
    *("\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202eevil", "\u200f", "\0", "\r\n", "a\nb", "\t", "\x7f", "\ufeff"),
    *("\ud800", "\udcff", "é", "字" * 30, "😀", "٣", "²", "Ⅷ", "½"),
    *(
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "~root",
        "a/../b",
        "a\\b",
        "C:\\x",
        "$(id)",
        "`id`",
        "%00",
        "%s%n",
        "{i}",
    ),
    *("-", "--help", "'", '"', "`", "[red]", "<script>", "http://[", "file:///etc/passwd", "hf:a/b"),
)
_BYTES: Final = (
    b"",
    b"\0",
    b"\xff",
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\x1b[2J",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0" * 64,
    b"9" * 5000,
)
_MAX_NODES: Final = 4000
_N_TRIES: Final = 400


def mutate(rng: random.Random, tree: Tree, others: Sequence[Tree], words: Sequence[Tree] = ()) -> Tree:
    """Return the tree with one or a few changes; parts may come from ``others``, values from ``words``."""
    for _ in range(1 + (rng.random() < 0.5) + (rng.random() < 0.25) + 3 * (rng.random() < 0.1)):
        path = _choose(rng, tree)
        tree = replace_at(tree, path, _changed(rng, at(tree, path), others, words))
    return tree


def at(tree: Tree, path: Path) -> Tree:
    """Return the part of a tree at a path."""
    part: Any = tree
    for step in path:
        part = part[step]
    return part


def replace_at(tree: Tree, path: Path, part: Tree) -> Tree:
    """Return a tree that has another part at a path; what is beside the path is shared."""
    if not path:
        return part
    step, *rest = path
    if isinstance(tree, dict):
        return {**tree, step: replace_at(tree[step], tuple(rest), part)}
    copy = list(tree)
    copy[int(step)] = replace_at(copy[int(step)], tuple(rest), part)
    return copy


def _choose(rng: random.Random, tree: Tree) -> Path:
    """Walk down at random, to a leaf more often than not."""
    path: list[int | str] = []
    while isinstance(tree, dict | list) and tree and (not path or rng.random() < 0.88):
        step = _choose_key(rng, tree) if isinstance(tree, dict) else rng.randrange(len(tree))
        path.append(step)
        tree = at(tree, (step,))
    return tuple(path)


def _choose_key(rng: random.Random, tree: dict[str, Tree]) -> str:
    """Choose what has parts of its own more often: a head of three fields must not have most of the changes."""
    deep = [key for key, part in tree.items() if isinstance(part, dict | list) and part]
    return rng.choice(deep if deep and rng.random() < 0.8 else list(tree))


def _changed(rng: random.Random, node: Tree, others: Sequence[Tree], words: Sequence[Tree]) -> Tree:
    if rng.random() < 0.06:
        return _anything(rng, words)
    if rng.random() < 0.06 and others:
        other = rng.choice(others)
        return at(other, _choose(rng, other))
    if isinstance(node, dict):
        return _changed_mapping(rng, node, words)
    if isinstance(node, list):
        return _changed_list(rng, node, words)
    return _changed_scalar(rng, node, words)


def _changed_mapping(rng: random.Random, node: dict[str, Tree], words: Sequence[Tree]) -> Tree:
    keys = list(node)
    if not keys or rng.random() < 0.3:
        return {**node, str(_word(rng, words) or rng.choice(_TEXTS)): _anything(rng, words)}
    key, other = rng.choice(keys), rng.choice(keys)
    match rng.randrange(5):
        case 0:
            return {name: value for name, value in node.items() if name != key}
        case 1:
            return {(_changed_text(rng, name) if name == key else name): value for name, value in node.items()}
        case 2:
            return {**node, key: node[other], other: node[key]}
        case 3:
            return {**node, key: [node[key]] * rng.choice((1, 2, 17))}
        case _:
            rng.shuffle(keys)
            return {name: node[name] for name in keys}


def _changed_list(rng: random.Random, node: list[Tree], words: Sequence[Tree]) -> list[Tree]:
    if not node:
        return [_anything(rng, words)]
    idx, other = rng.randrange(len(node)), rng.randrange(len(node))
    match rng.randrange(7):
        case 0:
            return node[:idx] + node[idx + 1 :]
        case 1:
            return node[: idx + 1] + node[idx:]
        case 2:
            copy = list(node)
            copy[idx], copy[other] = copy[other], copy[idx]
            return copy
        case 3:
            return [*node[:idx], _anything(rng, words), *node[idx:]]
        case 4:
            return node[:idx] + [node[idx]] * min(rng.choice((3, 17, 200)), _MAX_NODES // len(node) + 1) + node[idx:]
        case 5:
            return node[min(idx, other) : max(idx, other) + 1]
        case _:
            return node[:idx]


def _changed_scalar(rng: random.Random, node: Tree, words: Sequence[Tree]) -> Tree:
    if words and rng.random() < 0.15:
        return rng.choice(words)
    match node:
        case bool():
            return not node
        case int():
            return _changed_integer(rng, node)
        case float():
            return rng.choice((*_FLOATS, *_NO_NUMBERS, -node, node * 1e3, node / 7 if node else 1.5))
        case str():
            return _changed_text(rng, node)
        case bytes():
            return _changed_bytes(rng, node)
        case _:
            return _anything(rng, words)


def _changed_integer(rng: random.Random, node: int) -> int:
    match rng.randrange(6):
        case 0:
            return node + rng.choice((1, -1))
        case 1:
            return node * rng.choice((2, 3, 1000, -1))
        case 2:
            return node ^ (1 << rng.randrange(64))
        case 3:
            return rng.getrandbits(rng.choice((3, 8, 16, 32, 64)))
        case _:
            return rng.choice(_INTEGERS)


def _changed_text(rng: random.Random, node: str) -> str:
    if not node or rng.random() < 0.25:
        return rng.choice(_TEXTS)
    idx, other = sorted((rng.randrange(len(node)), rng.randrange(len(node))))
    match rng.randrange(6):
        case 0:
            return node[:idx] + rng.choice(_TEXTS)[:5000] + node[idx:]
        case 1:
            return node[:idx] + node[other:]
        case 2:
            return node[:idx] + chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) + node[idx + 1 :]
        case 3:
            return node[:other] + node[idx:]
        case 4:
            return _other_number(rng, node)
        case _:
            return node[: idx + 1]


def _other_number(rng: random.Random, node: str) -> str:
    """Put another number where one stands in a text: in the lines of a log they are what is read."""
    starts = [idx for idx, char in enumerate(node) if char.isdigit() and not node[idx - 1 : idx].isdigit()]
    if not starts:
        return node[::-1]
    start = end = rng.choice(starts)
    while end < len(node) and node[end] in "0123456789.,":
        end += 1
    number = rng.choice(
        (str(rng.choice(_INTEGERS)), str(rng.choice(_FLOATS)), "1.2.3", ".", "..", "9" * 400, "9" * 5000, "١٢")
    )
    return node[:start] + number + node[end:]


def _changed_bytes(rng: random.Random, node: bytes) -> bytes:
    if not node or rng.random() < 0.15:
        return rng.choice(_BYTES)
    idx, other = sorted((rng.randrange(len(node)), rng.randrange(len(node))))
    match rng.randrange(6):
        case 0:
            return node[:idx] + bytes([rng.randrange(256)]) + node[idx + 1 :]
        case 1:
            return node[:idx] + rng.choice(_BYTES) + node[idx:]
        case 2:
            return node[:idx] + node[other:]
        case 3:
            return node[:other] + node[idx:]
        case 4:
            return node[:idx] + bytes([node[idx] ^ (1 << rng.randrange(8))]) + node[idx + 1 :]
        case _:
            return node[: idx + 1]


def _word(rng: random.Random, words: Sequence[Tree]) -> Tree:
    return rng.choice(words) if words and rng.random() < 0.7 else None


def _anything(rng: random.Random, words: Sequence[Tree]) -> Tree:
    word = _word(rng, words)
    if word is not None:
        return word
    match rng.randrange(9):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2 | 3:
            return rng.choice(_INTEGERS)
        case 4:
            return rng.choice((*_FLOATS, *_NO_NUMBERS))
        case 5:
            return rng.choice(_TEXTS)
        case 6:
            return [rng.choice(_INTEGERS) for _ in range(rng.choice((0, 1, 3, 40)))]
        case 7:
            return rng.choice(({}, {"": None}, {"a": {"a": {"a": []}}}))
        case _:
            return _nested(rng.choice((3, 20, 1500)))


def _nested(depth: int) -> Tree:
    tree: Tree = []
    for _ in range(depth):
        tree = [tree]
    return tree


# --- Making a finding small -------------------------------------------------------------------------------------


def shrink(tree: Tree, still: Callable[[Tree], bool]) -> Tree:
    """Return a smaller tree that ``still`` shows the same: parts are left out as long as that holds."""
    n_left = _N_TRIES
    found = True
    while found and n_left > 0:
        found = False
        for smaller in _smaller(tree):
            n_left -= 1
            if n_left <= 0:
                break
            if still(smaller):
                tree, found = smaller, True
                break
    return tree


def _smaller(tree: Tree, depth: int = 0) -> Iterator[Tree]:
    if isinstance(tree, str | bytes) and len(tree) > 1:
        yield from (tree[: len(tree) // 2], tree[len(tree) // 2 :], tree[1:], tree[:-1])
    elif isinstance(tree, list) and tree:
        size = len(tree) // 2
        while size:
            yield from (tree[:start] + tree[start + size :] for start in range(0, len(tree), size))
            size //= 2
        if len(tree) == 1:
            yield []
    elif isinstance(tree, dict):
        yield from ({name: value for name, value in tree.items() if name != key} for key in tree)
    if isinstance(tree, dict | list) and depth < 8:
        for step in tree if isinstance(tree, dict) else range(len(tree)):
            yield from (replace_at(tree, (step,), part) for part in _smaller(tree[step], depth + 1))
