"""MiniMind: a small language model, its data and its training, from nothing, in plain PyTorch.

The half of the package that a web server needs (``config``, ``presets``, ``events``, ``control``,
``run_dir``, ``manifest``, ``preflight``, ``tokenizer``, ``chat_format``, ``data.layouts``,
``data.starter``) never imports torch; ``tests/test_architecture.py`` holds it to that.
"""

__version__ = "0.1.0"
