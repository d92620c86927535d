"""``./studio COMMAND``: one module per command, loaded only when it is asked for.

A command's module has ``arguments(parser)`` and ``run(args) -> exit status``; the first line of its
docstring is its help. ``FORWARDS = True`` keeps arguments that it does not know (``args.rest``).
"""
