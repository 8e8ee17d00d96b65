"""When each tensor of a graph takes memory on which backend and gives it back, by the engine's own rules.

Restates ``ggml_backend_sched_split_graph`` (``ggml/src/ggml-backend.cpp``) and ``ggml_gallocr`` (``ggml/src/
ggml-alloc.c``) of llama.cpp build 11434, for backends that support every operation: devices first, the CPU last.
None of this depends on how many bytes a weight has. It does not know models, nor where in a buffer a tensor comes to
lie (``replay.py``); it consumes the graph it is given.
"""

from typing import Final

from launcher.planner.footprint.graph import (
    FLASH_ATTN,
    GET_ROWS,
    GONE,
    HELD,
    IN_PLACE,
    LEAF,
    MUL_MAT,
    MUL_MAT_ID,
    ROPE,
    VIEW,
    WANTED,
    Graph,
    Tensor,
    span,
)
from launcher.planner.footprint.replay import GIVEN_BACK, OUTSIDE, UNWEIGHED, Event, Recording, Segment, WeightKey

OFFLOAD_MIN_BATCH: Final = 32
"""Smaller batches are not worth the copy of host weights (``ggml_backend_cuda_device_offload_op``)."""
PIPELINE_COPIES: Final = 4
"""Copies of each input with pipeline parallelism (``GGML_SCHED_MAX_COPIES``)."""
_UNPLACED: Final = -1
_IDLE: Final = Segment((), 0, (), ())
"""Of a pool in which nothing comes or goes."""


class Split:
    """A run of nodes on one backend, with the tensors that must be copied to it first."""

    __slots__ = ("backend", "end", "inputs", "start")

    def __init__(self, backend: int, start: int) -> None:
        """Open a split at node ``start``."""
        self.backend = backend
        self.start = start
        self.end = start
        self.inputs: list[tuple[Tensor, Tensor]] = []


def _batch(node: Tensor) -> int:
    """Return how many rows an operation has, as a device decides whether to take it over."""
    op, ne = node.op, node.ne
    if op is MUL_MAT:
        return ne[1]
    if op is MUL_MAT_ID or op is ROPE:
        return ne[2]
    return 0 if op is GET_ROWS else ne[1] * ne[2] * ne[3]


def _place_by_memory(node: Tensor, cpu: int, *, op_offload: bool) -> int:
    """``ggml_backend_sched_backend_id_from_cur``: where the memory puts what a view shows or operands are, or ``_UNPLACED``."""
    root = node.root
    if root is not None and root.external:
        return root.home
    op = node.op
    if op is ROPE or op is FLASH_ATTN:
        return _UNPLACED
    for operand in node.src:
        if operand.is_weight:
            if op_offload and operand.home == cpu and _batch(node) >= OFFLOAD_MIN_BATCH:
                return 0
            return operand.home
    return _UNPLACED


def _spread(nodes: list[Tensor], cpu: int) -> None:
    """Pass 2: unplaced nodes follow their neighbours, devices before the CPU, downwards before upwards."""
    for skip_cpu in (True, False):
        for order in (nodes, reversed(nodes)):
            current = _UNPLACED
            for node in order:
                if node.backend != _UNPLACED:
                    current = _UNPLACED if skip_cpu and node.backend == cpu else node.backend
                elif current != _UNPLACED:
                    node.backend = current


def _settle_views(graph: Graph, cpu: int) -> None:
    """Pass 4: views go where the tensor they show is."""
    for node in graph.nodes:
        if node.backend == _UNPLACED:
            node.backend = cpu if node.root is None else node.root.backend
        for operand in node.src:
            if operand.backend == _UNPLACED:
                operand.backend = node.backend if operand.root is None else operand.root.backend


def _copy(source: Tensor, *, pinned: bool) -> Tensor:
    n_bytes = source.n_bytes if source.root is None else span(source)
    copy = Tensor(LEAF, source.element, source.ne, (), source.nb, None, n_bytes)
    copy.key = source.key
    copy.is_input = copy.is_output = pinned
    return copy


def _needs_new_split(node: Tensor, split: Split) -> bool:
    """Whether a node's weights must be copied: then the copies before it can be dropped first."""
    if split.inputs:
        here = split.backend
        for operand in node.src:
            if operand.is_weight and operand.backend != here:
                return True
    return False


def _split(graph: Graph, *, pinned: bool) -> list[Split]:
    """Pass 5: cut the graph where the backend changes, with a copy of each tensor that lies elsewhere."""
    nodes = graph.nodes
    first = next(node for node in nodes if node.op is not VIEW)
    split = Split(first.backend, 0)
    splits = [split]
    copies: dict[tuple[int, int], Tensor] = {}
    for idx, node in enumerate(nodes):
        if node.op is VIEW:
            continue
        if node.backend != split.backend or _needs_new_split(node, split):
            split.end = idx
            split = Split(node.backend, idx)
            splits.append(split)
        here = split.backend
        for operand in node.src:
            if operand.backend != here:
                node.src = _with_copies(node.src, split, copies, pinned=pinned)
                break
    split.end = len(nodes)
    return splits


def _with_copies(
    operands: tuple[Tensor, ...], split: Split, copies: dict[tuple[int, int], Tensor], *, pinned: bool
) -> tuple[Tensor, ...]:
    """Replace operands that lie elsewhere by their copies on the split's backend."""
    here = split.backend
    replaced = list(operands)
    for at, operand in enumerate(operands):
        if operand.backend == here:
            continue
        key = (id(operand), here)
        copy = copies.get(key)
        if copy is None:
            copy = copies[key] = _copy(operand, pinned=pinned)
            copy.backend = here
            split.inputs.append((operand, copy))
        replaced[at] = copy
    return tuple(replaced)


def _dependency(source: Tensor) -> Tensor:
    """A node that keeps ``source`` until its copy is made."""
    node = Tensor(LEAF, source.element, source.ne, (source,), root=source.root or source)
    node.backend = source.backend
    return node


def _order(graph: Graph, splits: list[Split]) -> list[Tensor]:
    """Return the nodes as the allocator walks them: each split's copies first."""
    ordered: list[Tensor] = []
    for split in splits:
        for source, copy in split.inputs:
            ordered += (_dependency(source), copy)
        ordered += graph.nodes[split.start : split.end]
    return ordered


def _pipeline_leafs(graph: Graph, splits: list[Split]) -> list[Tensor]:
    """With pipeline parallelism every graph input, wherever it is copied to, exists ``PIPELINE_COPIES`` times."""
    leafs: list[Tensor] = []

    def add(first: Tensor, backend: int) -> None:
        for idx in range(PIPELINE_COPIES):
            leaf = first if idx == 0 else _copy(first, pinned=True)
            leaf.is_input = leaf.is_output = True
            leaf.backend = backend
            leafs.append(leaf)

    for leaf in graph.leafs:
        if leaf.is_input:
            add(leaf, leaf.backend)
    for split in splits:
        for _, copy in split.inputs:
            add(copy, split.backend)
    return leafs


class _Roll:
    """What comes and goes of one backend's memory, cut into segments."""

    def __init__(self, sizes: dict[int, int]) -> None:
        self.segments: list[Segment] = []
        self._sizes = sizes
        self._events: list[Event] = []
        self._weights: dict[WeightKey, int] = {}
        self._n_taken = self._held_before = self._next_number = 0
        self._passed_on = False
        self._held: dict[int, int] = {}
        """The number within this segment of each register, those first whose memory is longest in the same hands."""

    def take(self, node: Tensor) -> None:
        """Record that a tensor takes memory."""
        register = node.register = self._n_taken
        self._n_taken += 1
        number = self._held[register] = self._next_number
        self._next_number += 1
        weight = UNWEIGHED
        if node.key is not None:
            weight = self._weights.setdefault(node.key, len(self._weights))
        sizes = self._sizes
        self._events.append((number, sizes.setdefault(node.n_bytes, len(sizes)), weight))

    def pass_on(self, parent: Tensor, node: Tensor) -> None:
        """Record that a tensor has the memory of another from now on."""
        self._passed_on = True
        node.register = parent.register
        self._held[node.register] = self._held.pop(node.register)

    def give(self, node: Tensor) -> None:
        """Record that a tensor gives its memory back."""
        self._events.append((self._held.pop(node.register), GIVEN_BACK, UNWEIGHED))

    def cut(self) -> None:
        """End a segment."""
        if not self._events and not self._passed_on:
            self.segments.append(_IDLE)
            return
        self._passed_on = False
        left = tuple(self._held.values())
        self.segments.append(Segment(tuple(self._events), self._held_before, left, tuple(self._weights)))
        self._events, self._weights = [], {}
        self._held = {register: number for number, register in enumerate(self._held)}
        self._held_before = self._next_number = len(left)


class _Recorder:
    """``ggml_gallocr``: tensors share registers as they take memory over, freed when their last reader is done."""

    def __init__(self, n_backends: int) -> None:
        self.sizes: dict[int, int] = {}
        """The index of each size that a tensor had, in bytes."""
        self.rolls = [_Roll(self.sizes) for _ in range(n_backends)]

    def allocate(self, node: Tensor, backend: int) -> None:
        """Give memory to a tensor whose memory is ``WANTED``: an operand's where that may be, else the backend's."""
        node.memory = HELD
        op = node.op
        if (op is IN_PLACE or op is ROPE) and self._take_over(node):
            return
        node.pool = backend
        self.rolls[backend].take(node)

    def _take_over(self, node: Tensor) -> bool:
        """Reuse an operand's memory if nobody else reads it and it has the same layout."""
        for parent in node.src:
            # a view owns no memory, so neither it nor what it shows is taken over
            if parent.memory != HELD or parent.is_output:
                continue
            if parent.n_children != 1 or parent.n_views != 0:
                continue
            if node.ne != parent.ne or node.element is not parent.element or node.nb != parent.nb:
                continue
            node.pool = parent.pool
            self.rolls[node.pool].pass_on(parent, node)
            parent.memory = GONE
            return True
        return False

    def compute(self, nodes: list[Tensor]) -> None:
        """Give memory to each node's operands and result, then free what it was the last to read.

        What must outlast the graph is never freed.
        """
        allocate = self.allocate
        gives = [roll.give for roll in self.rolls]
        for node in nodes:
            src = node.src
            for operand in src:
                if operand.memory == WANTED:
                    allocate(operand, node.backend)
            if node.memory == WANTED:
                allocate(node, node.backend)
            for parent in src:
                n_children = parent.n_children = parent.n_children - 1
                if n_children or parent.n_views:
                    continue
                owner = parent.root
                if owner is None:
                    owner = parent
                else:
                    owner.n_views -= 1
                    if owner.n_views or owner.n_children:
                        continue
                if owner.memory == HELD and not owner.is_output:
                    gives[owner.pool](owner)
                    owner.memory = GONE

    def cut(self) -> None:
        """End a segment."""
        for roll in self.rolls:
            roll.cut()


def _count(nodes: list[Tensor], n_blocks: int) -> list[list[Tensor]]:
    """Count who reads each tensor, and cut what the allocator walks where the first weight of each block is read.

    Returns what is before the first block, then each block.
    """
    place = OUTSIDE
    parts: list[list[Tensor]] = [[] for _ in range(n_blocks + 1)]
    part = parts[0]
    for node in nodes:
        root = node.root
        if root is not None and node.op is not LEAF:
            root.n_views += 1
        for operand in node.src:
            operand.n_children += 1
            key = operand.key
            if key is not None and key[0] > place:
                place = key[0]
                part = parts[place + 1]
        part.append(node)
    return parts


def record(
    graph: Graph, n_blocks: int, n_devices: int, *, op_offload: bool = False, pipeline: bool = False
) -> Recording:
    """Return what comes and goes on each device and, last, on the CPU: before the first block, then during each.

    The graph's tensors are marked while it is recorded, so a graph is recorded once.
    """
    cpu = n_devices
    op_offload = op_offload and n_devices > 0
    for leaf in graph.leafs:
        leaf.backend = leaf.home if leaf.external else cpu if leaf.is_input else _UNPLACED
    for node in graph.nodes:
        node.backend = _place_by_memory(node, cpu, op_offload=op_offload)
    _spread([node for node in graph.nodes if node.op is not VIEW], cpu)
    _settle_views(graph, cpu)
    splits = _split(graph, pinned=pipeline)
    recorder = _Recorder(n_devices + 1)
    leafs = (_pipeline_leafs(graph, splits) if pipeline else []) + graph.leafs
    for leaf in leafs:
        if leaf.memory == WANTED:
            recorder.allocate(leaf, leaf.backend)
    for part in _count(_order(graph, splits), n_blocks):
        recorder.compute(part)
        recorder.cut()
    return Recording(tuple(tuple(roll.segments) for roll in recorder.rolls), tuple(recorder.sizes))
