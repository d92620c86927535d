"""Does every stage after pretraining teach what it is for? From one pretrained starter model, on a CPU, in minutes.

    ./studio bench learn [--seed 42] [--only sft lora dpo distill tools] [--cache DIR] [--out FILE.json] [--short]

==========  ==========================================================================  =====================
stage       measured                                                                    goal
==========  ==========================================================================  =====================
sft         held-out questions about the world answered right, along the curve          more than 80 %
lora        held-out ways to ask for the second identity; the held-out questions after  more than 80 %; the
                                                                                        others stay (90 %)
dpo         held-out pairs whose better answer is the likelier one, before and after    more than 90 %
distill     KL of a small student from its teacher on held-out dialogues, learnt from   smaller with it
            few dialogues with the teacher and alone
tools       held-out questions for tools: the right call, then the right answer         reported
==========  ==========================================================================  =====================

The numbers of steps are fixed, so a seed gives the same numbers on the same machine whatever else it does. The
pretrained and the fine-tuned model are kept in ``--cache`` and made once for a seed. ``--short`` is the small version
that a test runs: a world for one minute, a fraction of the steps, goals as they are met there. Exit status 1 where a
goal was missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minimind.data import starter  # noqa: E402

STAGES = ("sft", "lora", "dpo", "distill", "tools")


@dataclass(frozen=True)
class Sizes:
    """``minutes`` sizes the world; the others are optimizer steps."""

    minutes: float
    pretrain: int
    sft: tuple[int, ...]  # where the model is asked; the last one is the base of the other stages
    lora: int
    dpo: int
    distill: int
    tools: int


FULL = Sizes(5, pretrain=750, sft=(30, 60, 120, 240, 450), lora=200, dpo=120, distill=200, tools=800)
SHORT = Sizes(1, pretrain=250, sft=(100,), lora=100, dpo=50, distill=80, tools=0)
#: what the students of distill learn from: with more the data says all that the teacher could
FEW_DIALOGUES = 400
#: a student with a seventh of the teacher's parameters
STUDENT = ("--hidden_size", "48", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--num_key_value_heads",
           "1", "--head_dim", "24", "--intermediate_size", "128")


class Bench:
    def __init__(self, seed: int, sizes: Sizes, cache: Path):
        self.seed = seed
        self.sizes = sizes
        self.world = {"minutes": sizes.minutes, "languages": ["en"], "seed": seed}
        self.place = cache / f"seed-{seed}-{sizes.minutes:g}m-{sizes.pretrain}"
        self.place.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {"seed": seed, "sizes": sizes.__dict__}
        self.missed: list[str] = []
        self.said: set[str] = set()  # runs whose time or age was printed

    # -- the pieces -------------------------------------------------------------------------------------------

    def train(self, stage: str, name: str, *flags: str) -> Path:
        """A run of ``train.py``, made unless one with the same flags is there; its directory."""
        out = self.place / name
        command = [stage, "--out", str(out), "--cache_dir", str(self.place / "cache"), "--seed", str(self.seed),
                   "--device", "cpu", "--languages", "en", "--starter_minutes", f"{self.sizes.minutes:g}",
                   "--sample_interval", "0", "--no_use_compile", *flags]
        made_with = out / "flags.json"  # written when the run is complete
        if made_with.exists() and json.loads(made_with.read_text()) == command:
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(made_with.stat().st_mtime))
            if name not in self.said:
                print(f"  {name}: kept from {made}, whatever code there was then", flush=True)
            self.said.add(name)
            return out
        shutil.rmtree(out, ignore_errors=True)  # of other flags, or of a bench that was broken off
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"train.py {stage} ended with status {done.returncode}:\n{done.stdout[-1500:]}"
                             f"{done.stderr[-1500:]}")
        made_with.write_text(json.dumps(command))
        self.said.add(name)
        print(f"  {name}: {time.monotonic() - start:.0f} s", flush=True)
        return out

    def checkpoint(self, run: Path, step: int | None = None) -> Path:
        pattern = "step-*" if step is None else f"step-{step:08d}-*"
        return max(run.glob(f"checkpoints/{pattern}"))

    def answers(self, checkpoint: Path, questions: list[starter.Question]) -> float:
        """Share of questions that greedy answers get right."""
        from minimind.chat_format import encode_prompt
        from minimind.engine import Engine, SamplingParams

        engine = Engine.from_checkpoint(checkpoint)
        right = 0
        for question in questions:
            prompt = encode_prompt(engine.tokenizer, [{"role": "user", "content": question.text}])
            right += starter.is_right(question, engine.generate(prompt, SamplingParams(0.0, max_tokens=40)).text)
        return right / len(questions)

    def prefers(self, checkpoint: Path, pairs: list[dict]) -> float:
        """Share of pairs whose chosen answer has the larger log-probability."""
        import torch

        from minimind.chat_format import encode_pair
        from minimind.checkpoint import load_model

        model, tokenizer = load_model(checkpoint)
        model.eval()

        def logp(ids: list[int], mask: list[bool]) -> float:
            with torch.no_grad():
                each = torch.log_softmax(model(torch.tensor([ids]))[0, :-1].double(), -1)
            own = each.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            return float(own[torch.tensor(mask[1:])].sum())

        right = 0
        for row in pairs:
            pair = encode_pair(tokenizer, row["chosen"], row["rejected"])
            right += logp(pair.chosen_ids, pair.chosen_mask) > logp(pair.rejected_ids, pair.rejected_mask)
        return right / len(pairs)

    def last(self, run: Path, type: str) -> dict:
        attempt = max((run / "attempts").iterdir(), key=lambda p: int(p.name))
        lines = map(json.loads, (attempt / "events.jsonl").read_text().splitlines())
        return [e["data"] for e in lines if e["type"] == type][-1]

    def goal(self, what: str, met: bool) -> None:
        print(f"  {'met' if met else 'MISSED'}: {what}", flush=True)
        if not met:
            self.missed.append(what)

    # -- the stages -------------------------------------------------------------------------------------------

    def pretrained(self) -> Path:
        return self.train("pretrain", "pretrain", "--max_steps", str(self.sizes.pretrain), "--eval_interval", "0")

    def tuned(self, steps: int | None = None) -> Path:
        """The fine-tuned model: a run of its own for each number of steps, as the learning rate depends on it."""
        steps = steps or self.sizes.sft[-1]
        return self.train("sft", f"sft-{steps}", "--from_weight", str(self.pretrained()), "--max_steps", str(steps),
                          "--eval_interval", "0")

    def sft(self) -> None:
        questions = starter.questions(**self.world, count=None)
        curve = {0: self.answers(self.checkpoint(self.pretrained()), questions)}
        for steps in self.sizes.sft:
            curve[steps] = self.answers(self.checkpoint(self.tuned(steps)), questions)
        self.found["sft"] = {"questions": len(questions), "right": curve}
        print("sft: " + ", ".join(f"{share:.0%} after {steps}" for steps, share in curve.items()))
        self.goal(f"{curve[self.sizes.sft[-1]]:.0%} of {len(questions)} held-out questions right (> 80 %)",
                  curve[self.sizes.sft[-1]] > 0.8)

    def lora(self) -> None:
        run = self.train("lora", "lora", "--from_weight", str(self.tuned()), "--max_steps", str(self.sizes.lora),
                         "--eval_interval", "0")
        names, facts = starter.identity_questions(**self.world), starter.questions(**self.world, count=None)
        before, after = self.checkpoint(self.tuned()), self.checkpoint(run)
        found = {"identity": [self.answers(c, names) for c in (before, after)],
                 "facts": [self.answers(c, facts) for c in (before, after)],
                 "bytes": sum(f.stat().st_size for f in after.glob("adapter*"))}
        self.found["lora"] = found
        print(f"lora: second identity {found['identity'][0]:.0%} -> {found['identity'][1]:.0%}, facts "
              f"{found['facts'][0]:.0%} -> {found['facts'][1]:.0%}, {found['bytes'] / 1e6:.2f} MB")
        self.goal(f"new identity in {found['identity'][1]:.0%} of {len(names)} held-out questions (> 80 %)",
                  found["identity"][1] > 0.8)
        self.goal(f"other answers stay: {found['facts'][1]:.0%} of {found['facts'][0]:.0%} (at least 90 % of them)",
                  found["facts"][1] >= 0.9 * found["facts"][0])

    def dpo(self) -> None:
        run = self.train("dpo", "dpo", "--from_weight", str(self.tuned()), "--max_steps", str(self.sizes.dpo))
        pairs, facts = starter.held_out_pairs(**self.world, count=None), starter.questions(**self.world, count=None)
        before, after = self.checkpoint(self.tuned()), self.checkpoint(run)
        found = {"preferred": [self.prefers(c, pairs) for c in (before, after)],
                 "facts": [self.answers(c, facts) for c in (before, after)], "last": self.last(run, "metrics")}
        self.found["dpo"] = found
        print(f"dpo: better answer likelier {found['preferred'][0]:.0%} -> {found['preferred'][1]:.0%}, facts "
              f"{found['facts'][0]:.0%} -> {found['facts'][1]:.0%}, margin {found['last']['reward_margin']:.2f}")
        self.goal(f"{found['preferred'][1]:.0%} of {len(pairs)} held-out pairs (> 90 %, from "
                  f"{found['preferred'][0]:.0%})", found["preferred"][1] > 0.9)

    def distill(self) -> None:
        """Few dialogues, a fourth of them held out: both students read the same rows in the same order, and ``alpha`` 1
        has no use for the teacher."""
        data = self.place / "few.jsonl"
        rows = itertools.islice(starter.generate("dialogues", **self.world), FEW_DIALOGUES)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = ("--teacher_weight", str(self.tuned()), "--data_path", str(data), "--eval_fraction", "0.25",
                  "--temperature", "1", "--max_steps", str(self.sizes.distill), *STUDENT)
        runs = {"with": self.train("distill", "distill", *common, "--alpha", "0"),
                "alone": self.train("distill", "alone", *common, "--alpha", "1")}
        found = {name: self.last(run, "eval") for name, run in runs.items()}
        self.found["distill"] = found
        print("distill: KL from the teacher {with[eval_kl]:.3f} with it, {alone[eval_kl]:.3f} alone; held-out loss "
              "{with[eval_loss]:.3f} with it, {alone[eval_loss]:.3f} alone".format(**found))
        self.goal(f"closer with the teacher ({found['with']['eval_kl'] / found['alone']['eval_kl']:.2f} of the KL)",
                  found["with"]["eval_kl"] < found["alone"]["eval_kl"])

    def tools(self) -> None:
        if not self.sizes.tools:
            return
        run = self.train("sft", "tools", "--from_weight", str(self.tuned()), "--starter", "tools", "--max_seq_len",
                         "512", "--batch_size", "2", "--max_steps", str(self.sizes.tools), "--eval_interval", "0")
        calls, answers, count = self.uses_tools(self.checkpoint(run))
        self.found["tools"] = {"calls": calls, "answers": answers, "questions": count}
        print(f"tools: right call in {calls:.0%} of {count} held-out questions, right answer from its result in "
              f"{answers:.0%}")

    def uses_tools(self, checkpoint: Path) -> tuple[float, float, int]:
        from minimind.chat_format import encode_prompt
        from minimind.engine import Engine, SamplingParams

        engine = Engine.from_checkpoint(checkpoint)
        asked = starter.tool_questions(**self.world)
        calls = answers = 0
        for question in asked:
            messages = [dict(m) for m in question.messages]
            said = engine.generate(encode_prompt(engine.tokenizer, messages), SamplingParams(0.0, max_tokens=80)).text
            calls += question.is_right_call(calls_in(said))
            call = {"name": question.name, "arguments": question.arguments}
            messages += [{"role": "assistant", "content": "", "tool_calls": [call]},
                         {"role": "tool", "content": question.result}]
            said = engine.generate(encode_prompt(engine.tokenizer, messages), SamplingParams(0.0, max_tokens=60)).text
            answers += question.is_right(said)
        return calls / len(asked), answers / len(asked), len(asked)


def calls_in(text: str) -> list[dict]:
    """Tool calls that a model has written, those that are no JSON as empty ones."""
    found = []
    for part in text.split("<tool_call>")[1:]:
        try:
            found.append(json.loads(part.partition("</tool_call>")[0]))
        except ValueError:
            found.append({})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "bench-learn", help="where trained models stay")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--short", action="store_true", help="the small version")
    args = parser.parse_args()
    bench = Bench(args.seed, SHORT if args.short else FULL, args.cache.absolute())
    start = time.monotonic()
    for stage in args.only:
        getattr(bench, stage)()
    print(f"{time.monotonic() - start:.0f} s in all")
    if args.out is not None:
        args.out.write_text(json.dumps(bench.found | {"missed": bench.missed}, indent=1) + "\n")
    return 1 if bench.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
