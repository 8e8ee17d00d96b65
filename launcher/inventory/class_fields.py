"""The annotated fields of classes in a Python source, which is parsed and never run.

It must not know whose source it is: for some engines a field is an option of their command.
"""

from collections.abc import Collection, Iterator


def annotated_fields(source: str, classes: Collection[str]) -> Iterator[str]:
    """Yield the names of the annotated fields that the module's classes of these names declare themselves, in order.

    Raises:
        SyntaxError: the text is no Python.
    """
    import ast  # noqa: PLC0415 - 5 ms, and what it finds is remembered
    import warnings  # noqa: PLC0415 - with it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parser, about another program's style
        parsed = ast.parse(source)
    for node in parsed.body:
        if not isinstance(node, ast.ClassDef) or node.name not in classes:
            continue
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield statement.target.id
