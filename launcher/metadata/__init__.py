"""The headers of weights files: a stream or a folder in, a ``ModelSpec`` out.

The room knows formats. It knows nothing of machines, engines or plans, and never reads a weight. Start at ``load.read_spec``.
"""
