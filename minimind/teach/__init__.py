"""Black-box distillation: a teacher's answers become data that a student is fine-tuned on (sequence-level knowledge
distillation, Kim and Rush, arXiv:1606.07947: learn from what the teacher says, not from its probabilities).

=============== ===============================================================================
``questions``   what is asked, read from a file of questions, conversations, prompts or lines
``teachers``    what every teacher gives: an ``Answer``, or why there is none
``endpoint``    a teacher behind an OpenAI-compatible address; ``address`` says which are refused
``local``       a teacher that is a checkpoint of ours (the only one that needs torch)
``journal``     the answers so far, a line each: what a restart goes on from
``loop``        asks, several at a time, and says how far it is
=============== ===============================================================================

``python -m minimind.teach --help`` is the door.
"""
