"""What each stage does, for whoever meets it for the first time: three sentences, one formula, a healthy curve.

The formula stands in ``templates/macros/formulas.html`` under the stage's name; the curve is drawn from a function, as
a picture of how such a run looks and not of one that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from app.i18n import gettext as _
from app.source import Place

#: the picture in its own units: a box for the lines, with room for the words around it
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 170, 12, 352, 14, 146
POINTS = 60


@dataclass(frozen=True)
class Line:
    """One curve of a sketch: ``points`` of a polyline, ``color`` a token's number, its name where it ends."""

    label: str
    points: str
    color: int
    is_dashed: bool = False


@dataclass(frozen=True)
class Sketch:
    """A healthy curve. ``label`` is the whole picture in words, for who does not see it."""

    label: str
    x: str
    y: str
    lines: list[Line]


@dataclass(frozen=True)
class Paper:
    title: str
    url: str


@dataclass(frozen=True)
class Explanation:
    """``sentences``: three. ``spoken`` is the formula in words, ``symbols`` what its letters mean."""

    stage: str
    sentences: list[str]
    spoken: str
    symbols: list[tuple[str, str]]
    healthy: str
    sketch: Sketch
    paper: Paper
    places: list[Place]


def explain(stage: str) -> Explanation | None:
    """In the reader's language; None for a stage that this program does not have."""
    made = _EXPLAINED.get(stage)
    return None if made is None else made()


def _line(label: str, of: Callable[[float], float], color: int, *, is_dashed: bool = False) -> Line:
    """``of`` maps 0..1 (begin to end) to 0..1 (bottom to top)."""
    shares = [n / (POINTS - 1) for n in range(POINTS)]
    return Line(label, " ".join(f"{LEFT + s * (RIGHT - LEFT):.1f},{BOTTOM - of(s) * (BOTTOM - TOP):.1f}"
                                for s in shares), color, is_dashed)


def _falling(start: float, end: float, speed: float) -> Callable[[float], float]:
    return lambda s: end + (start - end) * math.exp(-speed * s)


def _paper(title: str, number: str) -> Paper:
    return Paper(f"{title}, arXiv:{number}", f"https://arxiv.org/abs/{number}")


def _tokenizer() -> Explanation:
    return Explanation(
        "tokenizer",
        [_("Text begins as bytes, of which there are 256, and the pair of neighbours that occurs most often "
           "becomes a new entry, again and again until the vocabulary is full."),
         _("Frequent words end up as one token and rare ones as a few pieces, so that nothing is ever unknown."),
         _("No weights are learnt: the result is a list of merges, and every model that was trained with it must "
           "keep it.")],
        _("The next entry is the pair of neighbours a b that occurs most often."),
        [("a, b", _("two entries of the vocabulary that stand side by side")),
         ("count", _("how often they do so in all of the text"))],
        _("There is no curve to wait for. Bytes for each token rise steeply with the first entries and flatten: "
          "three to five are usual for English. Where the curve is flat, more entries only make the model larger."),
        Sketch(_("Bytes for each token rise steeply at first and then ever more slowly."), _("Entries"),
               _("Bytes for each token"), [_line(_("English text"), lambda s: 0.9 * (1 - math.exp(-5 * s)), 1)]),
        _paper("Sennrich et al., Neural Machine Translation of Rare Words with Subword Units", "1508.07909"),
        [Place("minimind/tokenizer.py", "Tokenizer"), Place("minimind/stages/tokenizer.py", "run")])


def _pretrain() -> Explanation:
    return Explanation(
        "pretrain",
        [_("The model reads running text and says at each place how likely every entry of the vocabulary is to "
           "come next."),
         _("Its loss is how much the token that really came surprises it, in nats; the gradient makes that token "
           "likelier there and all others less likely."),
         _("Nobody labels anything: grammar, facts and style are learnt because they help to guess what comes next.")],
        _("The loss is the mean, over all tokens, of minus the logarithm of the probability of the token given the "
          "ones before it."),
        [("x", _("the tokens of the text, N in all")), ("p", _("the probability that the model gives"))],
        _("It begins near the logarithm of the vocabulary's size (7.6 for 2,048 entries), falls steeply, then ever "
          "more slowly; held-out text stays close above it. Where held-out text rises again while training falls, "
          "the text is being learnt by heart: take more of it, or fewer passes."),
        Sketch(_("Both losses fall steeply at first and then slowly, the held-out one close above the other."),
               _("Step"), _("Loss"), [_line(_("training"), lambda s: 0.08 + 0.88 * (1 + 30 * s) ** -0.75, 1),
                           _line(_("held out"), lambda s: 0.12 + 0.84 * (1 + 30 * s) ** -0.75, 2)]),
        _paper("Brown et al., Language Models are Few-Shot Learners", "2005.14165"),
        [Place("minimind/losses.py", "linear_cross_entropy"), Place("minimind/objectives.py", "NextToken"),
         Place("minimind/stages/pretrain.py", "Pretrain")])


def _sft() -> Explanation:
    return Explanation(
        "sft",
        [_("The model reads whole dialogues and is asked for the assistant's turns alone."),
         _("The loss is that of pretraining with a mask over it: what users, the system and tools say is read, and "
           "nothing is learnt from it."),
         _("It teaches what an answer looks like more than what is true, so that little data goes a long way.")],
        _("The loss is the mean, over the tokens of the assistant, of minus the logarithm of the probability of "
          "the token given everything before it."),
        [("A", _("the places of the assistant's tokens")), ("x", _("all tokens of the dialogue")),
         ("p", _("the probability that the model gives"))],
        _("The loss falls within the first tenth, while the model learns the form, and then slowly. A held-out "
          "loss that turns upward says when to stop: the checkpoint before the turn is the best."),
        Sketch(_("The training loss falls fast and then slowly; the held-out loss follows and in the end turns a "
                 "little upward."), _("Step"), _("Loss"),
               [_line(_("training"), lambda s: 0.1 + 0.6 * math.exp(-9 * s) + 0.16 * (1 - s), 1),
                _line(_("held out"), lambda s: 0.2 + 0.55 * math.exp(-8 * s) + 0.16 * (1 - s) + 0.18 * s * s, 2)]),
        _paper("Ouyang et al., Training language models to follow instructions with human feedback", "2203.02155"),
        [Place("minimind/stages/sft.py", "Sft"), Place("minimind/chat_format.py", "encode_conversation"),
         Place("minimind/losses.py", "linear_cross_entropy")])


def _lora() -> Explanation:
    return Explanation(
        "lora",
        [_("The base checkpoint's matrices stay as they are; beside each chosen one stand two small ones, A and B, "
           "whose product is added to it."),
         _("B begins as zeros, so that training begins with the base model itself, and only A and B get gradients: "
           "a few per cent of the numbers."),
         _("What is saved is the adapter alone, a small file that is laid over its base in a chat, or merged into "
           "it, after which it costs nothing.")],
        _("The output is W times x plus alpha divided by r times B times A times x."),
        [("W", _("a frozen matrix of the base")), ("A, B", _("the small matrices, r rows and r columns")),
         ("r", _("the rank")), ("α", _("how much their product counts"))],
        _("As in fine-tuning: a fast fall, then a slow one, and it usually ends a little above what training all "
          "weights would reach. Learning rates ten times as high are common. A loss that hardly moves wants a "
          "higher rate or a larger rank."),
        Sketch(_("The loss falls fast and then slowly, and ends a little above that of full fine-tuning."), _("Step"),
               _("Loss"), [_line(_("with an adapter"), _falling(0.85, 0.22, 6), 1),
                           _line(_("all weights"), _falling(0.85, 0.14, 7), 4, is_dashed=True)]),
        _paper("Hu et al., LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685"),
        [Place("minimind/lora.py", "LoRALinear"), Place("minimind/stages/lora.py", "Lora")])


def _dpo() -> Explanation:
    return Explanation(
        "dpo",
        [_("Each row is a question with two answers of which one is preferred; the model is compared with the "
           "reference, the base checkpoint as it was, whose log-probabilities are computed once before step 1."),
         _("The reward of an answer is how much likelier it has become than under the reference, times beta, and "
           "the loss pushes the chosen answer's reward above the rejected one's."),
         _("Beta is the leash: with a small one the model may move far from the reference, with a large one hardly "
           "at all.")],
        _("The loss is minus the logarithm of sigma of beta times the difference between the log-ratio of model "
          "and reference for the chosen answer and the same for the rejected answer."),
        [("w, l", _("the chosen and the rejected answer")), ("π, ref", _("model and reference")),
         ("σ", _("the sigmoid"))],
        _("The loss begins at 0.693, that of a coin, and half of the pairs are won. Pairs won climb to 70 to 95 % "
          "while the margin grows steadily. If all are won at once and the margin shoots up, or the chosen answers "
          "become unlikely too, the learning rate is too high or there are too many passes."),
        Sketch(_("Pairs won rise from a half toward one while the loss falls from 0.693."), _("Step"), "",
               [_line(_("pairs won"), lambda s: 0.5 + 0.42 * (1 - math.exp(-5 * s)), 3),
                _line(_("loss"), lambda s: 0.2 + 0.47 * math.exp(-3.2 * s), 1),
                _line(_("a coin"), lambda s: 0.5, 4, is_dashed=True)]),
        _paper("Rafailov et al., Direct Preference Optimization", "2305.18290"),
        [Place("minimind/objectives.py", "Preference"), Place("minimind/stages/dpo.py", "Dpo"),
         Place("minimind/chat_format.py", "encode_pair")])


def _distill() -> Explanation:
    return Explanation(
        "distill",
        [_("A teacher that is trained already reads the same tokens and says how likely it finds every entry of "
           "the vocabulary to come next; its weights stay as they are."),
         _("The student is pulled toward these probabilities, made flatter by the temperature, and by the weight "
           "alpha toward the data's own next token as well."),
         _("A whole distribution says more about a place than the one token that came, so that a small student "
           "gets further in the same steps than alone.")],
        _("The loss is alpha times the cross entropy with the data plus one minus alpha times the temperature "
          "squared times the Kullback-Leibler divergence from the teacher to the student."),
        [("CE", _("cross entropy with the data's next token")), ("p, q", _("teacher and student at temperature T")),
         ("α", _("the data's share"))],
        _("The distance from the teacher falls fast and flattens above zero: a smaller student cannot copy "
          "everything. The student's held-out loss comes down toward the teacher's own. Where it stays far above, "
          "the student is too small or has had too few steps."),
        Sketch(_("The distance from the teacher falls fast and flattens above zero; the student's loss nears the "
                 "teacher's."), _("Step"), "",
               [_line(_("student's loss"), _falling(0.95, 0.42, 5), 2),
                _line(_("teacher's loss"), lambda s: 0.36, 4, is_dashed=True),
                _line(_("distance"), _falling(0.7, 0.1, 7), 1)]),
        _paper("Hinton et al., Distilling the Knowledge in a Neural Network", "1503.02531"),
        [Place("minimind/objectives.py", "Distillation"), Place("minimind/losses.py", "linear_distillation"),
         Place("minimind/stages/distill.py", "Distill")])


_EXPLAINED: dict[str, Callable[[], Explanation]] = {
    "tokenizer": _tokenizer, "pretrain": _pretrain, "sft": _sft, "lora": _lora, "dpo": _dpo, "distill": _distill}
