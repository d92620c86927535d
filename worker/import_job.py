"""The job ``checkpoint_import``: files of a model or an adapter become a run that was never trained, with one
checkpoint. From there on it is like any other: to talk to, to start from, to export, to delete.

An adapter needs the model that it belongs to: its run keeps that as a lora run keeps its base.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.core.db import now, reading
from app.core.job_files import places, remove_half_made
from app.core.models import Checkpoint, Job, Run, TokenizerRow, new_id
from app.core.states import append_event
from minimind.data.starter import LANGUAGES
from minimind.errors import CheckpointError, MiniMindError
from minimind.manifest import MANIFEST_FILE, Manifest
from minimind.run_dir import RunDir, fsync_dir, write_json
from worker.jobs import Lost, Work
from worker.unpack import unpack

if TYPE_CHECKING:
    from minimind.formats.base import Base
    from minimind.tokenizer import Tokenizer

ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.safetensors", "config.json", "tokenizer.json"
GGUF = ".gguf"
#: endings of files that are a model, or upstream's adapter, by themselves
ALONE = (".pth", ".pt", GGUF)
#: ``Run.stage`` of what was brought in; an adapter's checkpoint is of the stage lora, as all of its kind
IMPORTED, LORA = "import", "lora"
#: what a row of the database and the name of a directory can hold
MOST_STEPS, LARGEST_LOSS = 2**53, 1e30


def import_checkpoint(work: Work) -> None:
    """Make the run's directory aside, then rename it into place and add its rows."""
    asked, (aside, home) = work.payload, places(work.kind, work.payload)
    source = Path(asked["aside"])
    if not source.is_dir():
        raise CheckpointError("The uploaded files are not there any more.", hint="Upload them again.")
    remove_half_made(work.kind, asked)
    aside.mkdir(parents=True)
    try:
        work.say(0, 1, "files", "Looking at the files", force=True)
        given = _given(source, aside / "given")
        made = RunDir(aside / "run")
        is_adapter = _is_adapter(given)
        work.say(0, 1, "files", "Reading the adapter" if is_adapter else "Reading the weights", force=True)
        checkpoint = (_adapter if is_adapter else _model)(work, given, made, aside / "cache")
        manifest = Manifest.read(checkpoint)
        work.say(1, 1, "files", "Putting it away", force=True)
        final = home / checkpoint.relative_to(made.path)
        made.path.rename(home)
        fsync_dir(home.parent)
        work.end("completed", finish=lambda session: _finish(session, work, manifest, final))
    except Lost:
        raise  # these places are somebody else's now
    except RecursionError:
        remove_half_made(work.kind, asked)
        raise CheckpointError("A JSON file among those sent is nested too deeply.",
                              hint="Download or export the model again.") from None
    except MiniMindError as error:
        remove_half_made(work.kind, asked)
        error.message = _shown(error.message, asked["shown"], aside / "given")
        raise
    except BaseException:
        remove_half_made(work.kind, asked)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(source, ignore_errors=True)


def _finish(session: Any, work: Work, manifest: Manifest, path: Path) -> dict:
    """The rows: a run that has ended, and its checkpoint."""
    asked, at, user_id = work.payload, now(session), session.get(Job, work.job_id).user_id
    is_adapter = manifest.adapter is not None
    run = Run(id=asked["run_id"], name=asked["name"], user_id=user_id, stage=IMPORTED, config={}, devices="auto",
              nodes=1, notes="", tags=[], attempt=0, fruitless_attempts=0, priority=0, save_on_stop=False,
              allow_changes=False, progress={}, next_seq=1, state="completed", desired="run",
              base_checkpoint_id=asked["base_checkpoint_id"] if is_adapter else None,
              created_at=at, updated_at=at, ended_at=at)
    row = Checkpoint(id=new_id(), run_id=run.id, attempt=0, stage=LORA if is_adapter else IMPORTED, step=manifest.step,
                     tokens=manifest.tokens, bytes=manifest.bytes, loss=manifest.loss, eval_loss=manifest.eval_loss,
                     path=str(path), tokenizer_fingerprint=manifest.tokenizer_fingerprint, state="ready",
                     created_at=at)
    session.add(run)
    session.flush()
    session.add(row)
    session.flush()
    append_event(session, f"run:{run.id}", "state", t=at,
                 data={"state": "completed", "from": None, "desired": "run", "message": "Imported."})
    return {"run_id": run.id, "checkpoint_id": row.id, "kind": "adapter" if is_adapter else "model"}


def _shown(message: str, name: str, given: Path) -> str:
    """A sentence about files as their owner knows them."""
    for suffix in ALONE:
        message = message.replace(str(given / f"weights{suffix}"), name)
    message = message.replace(f"{given}/", "").replace(str(given), name)
    return message.replace(f"The checkpoint {given.name} is", f"The checkpoint {name} is")


# -- files --------------------------------------------------------------------------------------------------------


def _given(source: Path, target: Path) -> Path:
    """The files in one directory without folders, what is packed unpacked, under the names that are looked for."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix in (".zip", ".tar"):
            unpack(file, target)
        else:
            shutil.copyfile(file, target / file.name)  # the upload stays: a second try begins with it
    tensors = [path for path in target.glob("*.safetensors") if "-of-" not in path.name]
    wanted = target / (ADAPTER_FILE if (target / ADAPTER_CONFIG_FILE).exists() else WEIGHTS_FILE)
    if len(tensors) == 1 and not (target / MANIFEST_FILE).exists():
        tensors[0].rename(wanted)
    return target


def _alone(given: Path) -> Path | None:
    """The .pth or .gguf file, where the weights are one."""
    if any((given / name).exists() for name in (MANIFEST_FILE, CONFIG_FILE, ADAPTER_CONFIG_FILE)):
        return None
    found = sorted(path for path in given.iterdir() if path.suffix in ALONE)
    if len(found) > 1:
        raise CheckpointError(f"These files are a model each: {', '.join(path.name for path in found)[:300]}.",
                              hint="Import one at a time.")
    return found[0] if found else None


def _is_adapter(given: Path) -> bool:
    """Raises ``CheckpointError`` where the files are of no kind that can be read."""
    if (given / MANIFEST_FILE).exists():
        return Manifest.read(given).adapter is not None
    if (given / ADAPTER_CONFIG_FILE).exists():
        return True
    if (given / CONFIG_FILE).exists():
        return False
    alone = _alone(given)
    if alone is not None:
        from minimind.formats.pth import read_pth

        return alone.suffix != GGUF and any(".lora." in name for name in read_pth(alone))
    names = ", ".join(sorted(path.name for path in given.iterdir())) or "nothing"
    raise CheckpointError(f"There is neither a model nor an adapter in what was sent: {names[:300]}.",
                          hint=f"An adapter is {ADAPTER_CONFIG_FILE} with {ADAPTER_FILE}, or upstream's .pth; a model "
                               f"{CONFIG_FILE} with {WEIGHTS_FILE}, a .gguf or a .pth.")


# -- what becomes of them ---------------------------------------------------------------------------------------------


def _adapter(work: Work, given: Path, made: RunDir, cache: Path) -> Path:
    from minimind.formats.adapter_files import import_adapter

    if work.payload["base_checkpoint_id"] is None:
        raise CheckpointError("This is an adapter, which changes a model and is none by itself.",
                              field="base_checkpoint_id",
                              hint="Import it again and choose the model that it was trained on.")
    base = _place(Checkpoint, work.payload["base_checkpoint_id"], "model below the adapter", "base_checkpoint_id")
    checkpoint = import_adapter(made.path, _alone(given) or given, base)
    manifest = Manifest.read(checkpoint)
    manifest.lineage["adapter"] = work.payload["shown"]
    manifest.seal(checkpoint)
    return checkpoint


def _model(work: Work, given: Path, made: RunDir, cache: Path) -> Path:
    from minimind.formats.base import open_base
    from minimind.formats.hf_config import hf_config
    from minimind.presets import ModelConfig

    told = _told(given)
    base = open_base(_alone(given) or given, cache,
                     lambda done, total: work.say(done, total, "bytes", "Reading the weights"))
    manifest = Manifest.read(base.path)
    manifest.lineage["base"] = work.payload["shown"]
    if told is not None:
        manifest.step, manifest.tokens = told.step, told.tokens
        manifest.loss, manifest.eval_loss = told.loss, told.eval_loss
        manifest.lineage["world"] = _world(told.lineage.get("world"))
    checkpoint = made.checkpoint(manifest.step, 0)
    checkpoint.parent.mkdir(parents=True)
    base.path.rename(checkpoint)
    tokenizer = _tokenizer(work, given, base, checkpoint)
    tokenizer.save(checkpoint)
    write_json(checkpoint / CONFIG_FILE, hf_config(ModelConfig.from_dict(manifest.model), tokenizer))
    manifest.tokenizer_fingerprint = tokenizer.fingerprint
    manifest.seal(checkpoint, {WEIGHTS_FILE: manifest.files[WEIGHTS_FILE]["sha256"]})
    return checkpoint


def _told(given: Path) -> Manifest | None:
    """What a studio's checkpoint says of itself; None for other weights.

    It came from outside like any file: its hashes are compared, and then it is a folder of weights, whose shape,
    tensors and tokenizer are looked at. Its other files, such as the optimizer's, stay behind. Raises
    ``CheckpointError``.
    """
    if not (given / MANIFEST_FILE).exists():
        return None
    from minimind.formats.hf_config import hf_config
    from minimind.presets import ModelConfig

    told = Manifest.read(given)
    told.verify(given)
    counts, losses = (told.step, told.tokens), (told.loss, told.eval_loss)
    if not (all(type(n) is int and 0 <= n <= MOST_STEPS for n in counts)
            and all(x is None or type(x) in (int, float) and abs(x) <= LARGEST_LOSS for x in losses)
            and isinstance(told.model, dict) and isinstance(told.lineage, dict)):
        raise CheckpointError(f"{given} has a {MANIFEST_FILE} that no training has written.",
                              hint="Download the checkpoint again.")
    write_json(given / CONFIG_FILE, hf_config(ModelConfig.from_dict(told.model)))
    (given / MANIFEST_FILE).unlink()
    return told


def _world(told: Any) -> dict | None:
    """The part of the starter corpus that the model knows, of which what is learnt next should speak too; None where
    there is none of that kind."""
    world = told if isinstance(told, dict) else {}
    minutes, languages, seed = (world.get(name) for name in ("minutes", "languages", "seed"))
    is_one = (type(minutes) in (int, float) and 0 < minutes <= 24 * 60 and type(seed) is int and 0 <= seed < 2**31
              and isinstance(languages, list) and languages and all(code in list(LANGUAGES) for code in languages))
    return {"minutes": minutes, "languages": languages, "seed": seed} if is_one else None


def _tokenizer(work: Work, given: Path, base: Base, checkpoint: Path) -> Tokenizer:
    """The one that was chosen, else the one with the weights, which is in ``checkpoint`` if it is of any use."""
    from minimind.formats.base import USELESS_TOKENIZER
    from minimind.tokenizer import Tokenizer

    if work.payload["tokenizer_id"] is not None:
        directory = _place(TokenizerRow, work.payload["tokenizer_id"], "tokenizer", "tokenizer_id")
    elif base.has_tokenizer:
        directory = checkpoint
    elif (given / TOKENIZER_FILE).exists():
        directory = given
    else:
        useless = [warning for warning in base.warnings if warning.startswith(USELESS_TOKENIZER)]
        raise CheckpointError(useless[0] if useless else "The weights come without a tokenizer.", field="tokenizer_id",
                              hint="Choose the one that they were trained with, or send its tokenizer.json and "
                                   "tokenizer_config.json along.")
    tokenizer = Tokenizer.load(directory)
    vocab_size = base.manifest.model["vocab_size"]
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(f"The tokenizer has {tokenizer.vocab_size} entries, and the model knows {vocab_size}.",
                              field="tokenizer_id", hint="Choose the one that it was trained with.")
    return tokenizer


def _place(model: type[Checkpoint] | type[TokenizerRow], id: str, what: str, field: str) -> Path:
    with reading() as session:
        row = session.get(model, id)
        if row is None or row.state != "ready" or not row.path:
            raise CheckpointError(f"The {what} is not there any more.", field=field, hint="Choose another one.")
        return Path(row.path)
