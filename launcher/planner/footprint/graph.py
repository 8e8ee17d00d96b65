"""A computation graph as ggml sees it: tensors with sizes, strides, views and the order in which they are computed.

Restates the shape rules of ``ggml/src/ggml.c`` (llama.cpp build 11434) for the operations that language models use;
no data, no kernels. It does not know models, devices or how memory is allocated.
"""

from typing import Final, NamedTuple, TypeAlias

from launcher.planner.footprint.replay import WeightKey

Shape: TypeAlias = tuple[int, int, int, int]


class Element(NamedTuple):
    """How a tensor's elements are stored: ``block`` of them take ``size`` bytes."""

    name: str
    block: int
    size: int


F32: Final = Element("f32", 1, 4)
F16: Final = Element("f16", 1, 2)
I32: Final = Element("i32", 1, 4)
I64: Final = Element("i64", 1, 8)

LEAF: Final = "leaf"
VIEW: Final = "view"
"""Also reshape, permute and transpose: all only reinterpret another tensor."""
MUL_MAT: Final = "mul_mat"
MUL_MAT_ID: Final = "mul_mat_id"
GET_ROWS: Final = "get_rows"
ROPE: Final = "rope"
FLASH_ATTN: Final = "flash_attn"
FRESH: Final = "fresh"
"""Any other operation whose result never takes over an operand's memory (norm, glu, cont, concat, ...)."""
IN_PLACE: Final = "in_place"
"""Any other operation whose result may take over an operand's memory (``ggml_op_can_inplace``)."""
STORE: Final = "store"
"""An operation that writes into another tensor and returns a view of it (set_rows, cpy)."""

WANTED: Final = 0
"""The graph's allocator has yet to give the tensor memory."""
HELD: Final = 1
GONE: Final = 2
"""It was freed or taken over, or the tensor never has memory of its own: a view, a weight, a cache."""


class Tensor:
    """A node or leaf of the graph, with the fields that scheduler and allocator keep per tensor.

    ``root`` is the tensor whose memory a view shows. ``external`` memory (weights, caches) is not the graph's;
    ``home`` is the index of the backend it is in. ``key`` tells which weight it is, or a copy of which: whoever built the
    graph chose it. ``n_bytes`` are those of its own memory: none of a view with strides of its own (``span``).
    ``backend`` is set once the graph is placed, ``pool`` and ``register`` once it has memory: they say which.
    """

    __slots__ = (
        "backend",
        "element",
        "external",
        "home",
        "is_input",
        "is_output",
        "is_weight",
        "key",
        "memory",
        "n_bytes",
        "n_children",
        "n_views",
        "nb",
        "ne",
        "op",
        "pool",
        "register",
        "root",
        "src",
        "visited",
    )
    backend: int
    home: int
    pool: int
    register: int

    def __init__(  # noqa: PLR0917 - made by the ten thousand, and names take as long to pass as all the rest
        self,
        op: str,
        element: Element,
        ne: Shape,
        src: "tuple[Tensor, ...]" = (),
        nb: Shape | None = None,
        root: "Tensor | None" = None,
        n_bytes: int = 0,
    ) -> None:
        """Derive strides and bytes: without ``nb`` the memory is contiguous."""
        self.op = op
        self.element = element
        self.ne = ne
        self.src = src
        self.root = root
        if nb is None:
            n, n_rows, n_planes, n_spaces = ne
            nb1 = element.size * (n // element.block)
            nb2 = nb1 * n_rows
            nb3 = nb2 * n_planes
            self.nb: Shape = (element.size, nb1, nb2, nb3)
            self.n_bytes = nb3 * n_spaces
        else:
            self.nb = nb
            self.n_bytes = n_bytes
        self.external = self.is_weight = self.is_input = self.is_output = self.visited = False
        self.n_children = self.n_views = 0
        self.key: WeightKey | None = None
        self.memory = WANTED if root is None else GONE


def span(tensor: Tensor) -> int:
    """Return the bytes from the first to the last element of a strided tensor (``ggml_nbytes``)."""
    ne, nb = tensor.ne, tensor.nb
    if not all(ne):
        return 0
    first = ne[0] * nb[0] // tensor.element.block
    return first + (ne[1] - 1) * nb[1] + (ne[2] - 1) * nb[2] + (ne[3] - 1) * nb[3]


def shape(n: int, n_rows: int = 1, n_planes: int = 1, n_spaces: int = 1) -> Shape:
    """Pad dimensions with ones to ggml's four."""
    return n, n_rows, n_planes, n_spaces


class Graph:
    """The tensors that a computation needs, in the order of ``ggml_build_forward_expand``."""

    def __init__(self) -> None:
        """Start empty."""
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []

    def expand(self, tensor: Tensor | None) -> None:
        """Add what ``tensor`` needs and is not there yet: operands first, from left to right."""
        if tensor is None or tensor.visited:
            return
        tensor.visited = True
        if tensor.op is LEAF:
            self.leafs.append(tensor)
            return
        for operand in tensor.src:
            if operand.visited:
                continue
            if operand.op is LEAF:
                operand.visited = True
                self.leafs.append(operand)
            else:
                self.expand(operand)
        self.nodes.append(tensor)


def new_input(element: Element, *ne: int) -> Tensor:
    """A leaf that the host fills before each computation."""
    tensor = Tensor(LEAF, element, shape(*ne))
    tensor.is_input = True
    return tensor


def new_external(element: Element, ne: Shape, home: int) -> Tensor:
    """A leaf in memory that is not the graph's own, such as a cache."""
    tensor = Tensor(LEAF, element, ne)
    tensor.external = True
    tensor.memory = GONE
    tensor.home = home
    return tensor


def new_weight(ne: Shape, home: int, key: WeightKey | None = None) -> Tensor:
    """A leaf that holds weights; how many bytes is not the graph's to know, without a ``key`` none."""
    tensor = new_external(F32, ne, home)
    tensor.n_bytes = 0
    tensor.is_weight = True
    tensor.key = key
    return tensor


def view(source: Tensor, ne: Shape, nb: Shape) -> Tensor:
    """``ggml_view_*``: another shape over the same memory."""
    return Tensor(VIEW, source.element, ne, (source,), nb, source.root or source)


def reshape(source: Tensor, n: int, n_rows: int = 1, n_planes: int = 1, n_spaces: int = 1) -> Tensor:
    """``ggml_reshape_*``, or ``ggml_view_*`` of what begins it: contiguous memory under other dimensions."""
    return Tensor(VIEW, source.element, (n, n_rows, n_planes, n_spaces), (source,), None, source.root or source)


def permute(source: Tensor, *axes: int) -> Tensor:
    """``ggml_permute``: dimension ``i`` becomes dimension ``axes[i]``."""
    from_ne, from_nb = source.ne, source.nb
    ne, nb = [0] * 4, [0] * 4
    for idx, axis in enumerate(axes):
        ne[axis], nb[axis] = from_ne[idx], from_nb[idx]
    return view(source, (ne[0], ne[1], ne[2], ne[3]), (nb[0], nb[1], nb[2], nb[3]))


def transpose(source: Tensor) -> Tensor:
    """``ggml_transpose``."""
    return permute(source, 1, 0, 2, 3)


def _alike(op: str, like: Tensor, element: Element, src: tuple[Tensor, ...]) -> Tensor:
    """Return a contiguous tensor of the shape of another, whose strides it has where that has memory of its own."""
    if like.root is None and like.n_bytes and like.element is element:
        return Tensor(op, element, like.ne, src, like.nb, None, like.n_bytes)
    return Tensor(op, element, like.ne, src)


def mul_mat(weights: Tensor, x: Tensor) -> Tensor:
    """``ggml_mul_mat``: always f32."""
    _, n_rows, n_planes, n_spaces = x.ne
    return Tensor(MUL_MAT, F32, (weights.ne[1], n_rows, n_planes, n_spaces), (weights, x))


def mul_mat_id(weights: Tensor, x: Tensor, ids: Tensor) -> Tensor:
    """``ggml_mul_mat_id``: one product for each expert that a token uses."""
    return Tensor(MUL_MAT_ID, F32, (weights.ne[1], ids.ne[0], x.ne[2], 1), (weights, x, ids))


def get_rows(table: Tensor, ids: Tensor) -> Tensor:
    """``ggml_get_rows``: f32, whatever the table is."""
    return Tensor(GET_ROWS, F32, (table.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]), (table, ids))


def in_place(*operands: Tensor) -> Tensor:
    """Return the result of an operation that may take over an operand's memory, of the first operand's shape."""
    first = operands[0]
    return _alike(IN_PLACE, first, first.element, operands)


def fresh(ne: Shape, *operands: Tensor, element: Element = F32) -> Tensor:
    """Return the result of an operation that needs memory of its own."""
    return Tensor(FRESH, element, ne, operands)


def like(*operands: Tensor) -> Tensor:
    """``fresh`` of the first operand's shape."""
    return _alike(FRESH, operands[0], F32, operands)


def cont(source: Tensor) -> Tensor:
    """``ggml_cont``: a contiguous copy."""
    return _alike(FRESH, source, source.element, (source,))


def rope(x: Tensor, positions: Tensor, *factors: Tensor) -> Tensor:
    """``ggml_rope_ext``."""
    return _alike(ROPE, x, x.element, (x, positions, *factors))


def concat(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """``ggml_concat``."""
    ne = list(a.ne)
    ne[axis] += b.ne[axis]
    return Tensor(FRESH, a.element, shape(*ne), (a, b))


def store(value: Tensor, into: Tensor, *ids: Tensor) -> Tensor:
    """``ggml_set_rows`` or ``ggml_cpy``: the result is a view of what was written to."""
    # set_rows keeps (value, ids, destination) as operands, cpy (value, destination)
    return Tensor(STORE, into.element, into.ne, (value, *ids, into), into.nb, into.root or into)


def argsort_top_k(scores: Tensor, k: int) -> Tensor:
    """``ggml_argsort_top_k``: a view of the first ``k`` columns of a full sort."""
    order = Tensor(FRESH, I32, scores.ne, (scores,))
    return view(order, (k, scores.ne[1], scores.ne[2], scores.ne[3]), order.nb)


def sum_rows(x: Tensor) -> Tensor:
    """``ggml_sum_rows``."""
    return Tensor(FRESH, F32, (1, x.ne[1], x.ne[2], x.ne[3]), (x,))


def flash_attn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
    """``ggml_flash_attn_ext``: permuted result ``(head_v, n_head, n_tokens, n_stream)``."""
    ne = (v.ne[0], q.ne[2], q.ne[1], q.ne[3])
    return Tensor(FLASH_ATTN, F32, ne, tuple(x for x in (q, k, v, mask, sinks) if x is not None))
