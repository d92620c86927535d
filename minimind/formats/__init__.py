"""Weights of other programs: Hugging Face folders and upstream MiniMind's ``.pth`` files, read and written.

``source.load_weights_from`` reads any of them, ``huggingface.save_huggingface`` and ``pth.save_pth`` write them, and
``base.open_base`` is what ``--from_weight`` goes through.
"""
