"""The runner of one attempt: ``python -m worker.runner RUN_ID ATTEMPT``, started detached by a worker.

It lives in a session of its own and survives web, broker, Celery and worker; its ranks do not survive it. It
renews the lease, turns the user's wish (``desired``) into ``control.json``, stores the trainer's events, and at
the end reads the verdict. When the database is away, training goes on and its events wait in their file. When
the run has moved on to another attempt (it was fenced), it kills what it started and ends. When the ranks make no
progress any more, it has them show what they are doing, ends them, and the run is tried again.

SIGTERM asks it to save, pause and put its run back into the queue (a shutdown of the studio).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from sqlalchemy import and_, or_, update

from app.core import channels, logging
from app.core.db import Session, reading, transaction
from app.core.models import LEASED_STATES, Attempt, Run
from app.core.queue import renew_lease, take_back
from app.core.settings import get_settings
from app.core.states import Fenced, append_event, move
from app.core.timing import get_timing
from minimind.control import read_control, write_control, write_sample_wish
from minimind.errors import MiniMindError
from minimind.run_dir import RunDir
from worker import causes, ladder, processes, stall
from worker.away import Away, database
from worker.bell import Bell
from worker.checkpoints import recover_checkpoints
from worker.device_lock import DeviceBusy, DeviceLocks
from worker.ingest import Ingest, Seen, adopt_checkpoints
from worker.launcher import ROOT
from worker.prepare import disk_error, prepare
from worker.verdict import keep_tokenizer, settle

log = logging.get_logger(__name__)

#: how often the child is looked at
TICK_S = 0.2
RETRY_DATABASE_S = 2.0
#: what is left of the last user of a GPU ends within this time, or the GPU counts as taken
GPU_PATIENCE_S = 15.0


class Runner:
    """One attempt, from its claim to its verdict."""

    def __init__(self, run_id: str, attempt: int):
        self.run_id = run_id
        self.attempt = attempt
        self.mark = processes.marker(run_id, attempt)
        self.run_dir = RunDir(get_settings().runs_dir / run_id)
        self.ingest = Ingest(run_id, attempt, self.run_dir, self._heard)
        self.child: subprocess.Popen | None = None
        self.world_size = 1
        self.devices: tuple[str, ...] = ()
        self.locks = DeviceLocks(())
        self.memory = causes.Memory.read()
        self.progress: stall.Progress | None = None
        self.stalled: stall.Stall | None = None
        self.stories: list[str] = []  # of ranks that could not simply show what they were doing
        self.spared = (os.getpid(),)
        self.woken = Bell()
        self.registered = False
        self.shutting_down = False
        self.ladder: ladder.Ladder | None = None
        self.ended = threading.Event()
        self._handled: tuple | None = None  # the row as the last look left it in the control file
        self._warned_away = False

    # -- life -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._on_shutdown)
        signal.signal(signal.SIGINT, self._on_shutdown)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            if not self._patiently(self._register):
                log.warning("not_ours")
                return 3
            self.registered = True
            for name, target in (("lease", self._keep_lease), ("ears", self._listen)):
                threading.Thread(target=target, name=name, daemon=True).start()
            problem = self._patiently(self._start)
            if problem is None:
                self._watch()
            self._finish(problem)
            return 0
        except Fenced as error:
            log.warning("fenced", error=str(error))
            return 3
        finally:
            self.ended.set()
            if self.registered:  # whatever happened, nothing of this attempt outlives its runner
                processes.kill_marked(self.mark, spare=self.spared, timeout_s=10)
            channels.background.flush()

    def _register(self) -> bool:
        """Write down who runs this attempt; False where it is over or has a runner already. A commit whose answer was
        lost finds us written down."""
        me = {"runner_pid": os.getpid(), "runner_started": processes.start_time()}
        with database(), transaction() as session:
            session.get(Run, self.run_id, with_for_update=True)  # locked in the order run, then attempt
            is_ours = session.execute(
                update(Attempt).where(Attempt.run_id == self.run_id, Attempt.number == self.attempt,
                                      Attempt.state == "open", or_(Attempt.runner_pid.is_(None), and_(
                                          Attempt.runner_pid == me["runner_pid"],
                                          Attempt.runner_started == me["runner_started"])))
                .values(me)).rowcount == 1
            # at once: on a busy machine a start can take longer than a lease
            return is_ours and renew_lease(session, self.run_id, self.attempt)

    def _start(self) -> MiniMindError | None:
        """Prepare and start the ranks; returns the user's mistake where there is one."""
        with database():
            self._refuse_if_stale()
            try:
                recover_checkpoints(self.run_id, self.run_dir)
            except OSError as error:  # files that cannot be read stay so: not what `_patiently` waits for
                return disk_error(error, self.run_dir.path)
            with transaction() as session:
                run = self._held_run(session)
                try:
                    launch = prepare(session, run, self.run_dir, get_settings())
                except MiniMindError as error:
                    return error
                except OSError as error:
                    return disk_error(error, self.run_dir.path)
                session.get(Attempt, (self.run_id, self.attempt)).world_size = launch.world_size
        self.world_size, self.devices = launch.world_size, launch.devices
        try:
            self.locks = DeviceLocks(self.devices)
            self.locks.take(GPU_PATIENCE_S)
        except MiniMindError as error:
            return error
        log_path = self.run_dir.attempt(self.attempt).path / "logs" / "launcher.log"
        try:
            with open(log_path, "ab") as output:
                # From the main thread: the ranks are killed when the thread that started them ends.
                self.child = subprocess.Popen(launch.command, cwd=ROOT,
                                              env=launch.environment | self.locks.environment(),
                                              stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                              pass_fds=self.locks.fds)
        except OSError as error:
            return disk_error(error, self.run_dir.path)
        self.progress = stall.Progress(self.run_dir, self.attempt)
        threading.Thread(target=self._keep_time, name="progress", daemon=True).start()
        log.info("started", pid=self.child.pid, ranks=launch.world_size)
        return None

    def _watch(self) -> None:
        """Until the child has ended."""
        next_ingest = next_look = 0.0
        rung = False
        timing = get_timing()
        while self.child.poll() is None:
            at = time.monotonic()
            if rung or at >= next_look:
                next_look = at + (timing.look_every_s if self._try(self._look) else RETRY_DATABASE_S)
            if rung or at >= next_ingest:
                next_ingest = at + (timing.ingest_every_s if self._try(self._pump) else RETRY_DATABASE_S)
            if self.shutting_down and self.ladder is None and self._warned_away:
                # The row cannot be asked; the run can still be saved. The next start settles it.
                self.ladder = ladder.shutdown()
                write_control(self.run_dir.attempt(self.attempt).control, "pause")
            if self.ladder is not None:
                self.ladder.climb(self.child.pid, list(self._ranks().values()), self.mark, self.spared)
            if self.stalled is None and self.progress.stall is not None and (
                    self.ladder is None or self.ladder.kind == "pause"):  # the other ladders end it anyway
                self._end_stalled(self.progress.stall)
            rung = self.woken.wait(TICK_S)

    def _end_stalled(self, stalled: stall.Stall) -> None:
        """Nothing moves any more: keep what every rank was doing, and end them all. The verdict says the rest."""
        self.stalled = stalled
        log.error("stalled", phase=stalled.phase, step=stalled.step, silent_s=round(stalled.silent_s))
        self.stories = stall.collect_stacks(self._ranks(), self.run_dir.attempt(self.attempt).log, stalled.message)
        processes.kill_marked(self.mark, spare=self.spared, timeout_s=10)

    def _finish(self, problem: MiniMindError | None) -> None:
        """Everything is proven dead, every event stored; then the verdict."""
        while not processes.kill_marked(self.mark, spare=self.spared, timeout_s=10):
            log.error("will_not_die", pids=processes.marked(self.mark, spare=self.spared))
        attempt = self.run_dir.attempt(self.attempt)
        result = attempt.read_result()
        if problem is not None:
            result = {"status": "failed", "checkpoint": None, "error": problem.as_dict()}
        cause = causes.find(returncode=self.child.returncode if self.child else None, world_size=self.world_size,
                            attempt_dir=attempt.path, result=result, memory_before=self.memory, stall=self.stalled)
        suspects = self._suspects(problem, cause)

        def conclude() -> str:
            while self._pump():
                pass
            with database():
                self._refuse_if_stale()
                adopt_checkpoints(self.run_id, self.run_dir)
                with transaction() as session:
                    run = self._held_run(session)
                    if self.stalled is not None:
                        self._say_stalled(session, run, self.stalled)
                    keep_tokenizer(session, run, self.run_dir)
                    put_back = self.shutting_down or (run.state == "pausing" and run.reason == "shutdown")
                    return settle(session, run, self.attempt, result, error=cause.as_dict() if cause else None,
                                  suspects=suspects, put_back=put_back, counts=not isinstance(problem, DeviceBusy))

        log.info("settled", state=self._patiently(conclude), status=(result or {}).get("status"))

    def _say_stalled(self, session: Session, run: Run, stalled: stall.Stall) -> None:
        append_event(session, f"run:{run.id}", "warning", attempt=self.attempt, step=stalled.step, data={
            "code": "STALL", "message": " ".join((stalled.message, *self.stories)), "hint": stalled.hint,
            "phase": stalled.phase, "silent_s": round(stalled.silent_s, 1), "limit_s": round(stalled.limit_s, 1)})

    def _suspects(self, problem: MiniMindError | None, cause: causes.Cause | None) -> list[str]:
        """The GPU that an error came from, where one is known."""
        if problem is not None and getattr(problem, "device", None) in self.devices:
            return [problem.device]
        if cause is not None and cause.rank is not None and len(self.devices) == self.world_size:
            return [self.devices[cause.rank]]
        return []

    # -- the row --------------------------------------------------------------------------------------------------

    def _refuse_if_stale(self) -> None:
        """Raises ``Fenced`` where the attempt is over: before anything is written that the row's own lock does not
        guard."""
        with reading() as session:
            run, attempt = session.get(Run, self.run_id), session.get(Attempt, (self.run_id, self.attempt))
            self._refuse_moved_on(run, attempt)

    def _refuse_moved_on(self, run: Run | None, attempt: Attempt | None) -> None:
        if run is None or run.attempt != self.attempt:
            raise Fenced(f"the run is at attempt {run.attempt if run else None}, this is {self.attempt}")
        if attempt is None or attempt.state == "closed":
            raise Fenced("the attempt was closed while its runner was away")

    def _held_run(self, session: Session) -> Run:
        """The run's row, locked, held by this attempt; raises ``Fenced`` where it is not (any more)."""
        run = session.get(Run, self.run_id, with_for_update=True, populate_existing=True)
        self._refuse_moved_on(run, session.get(Attempt, (self.run_id, self.attempt), populate_existing=True))
        if run.state == "recovering" and not take_back(session, run, self.attempt):
            raise Fenced("the attempt was closed while its runner was away")
        if run.state not in LEASED_STATES:
            raise Fenced(f"the run is {run.state}")
        return run

    def _look(self) -> None:
        """Turn the user's wish into a move and into the trainer's control file; writes only what changed."""
        with database():
            with reading() as session:
                run = session.get(Run, self.run_id)
                self._refuse_moved_on(run, session.get(Attempt, (self.run_id, self.attempt)))
                seen = (run.state, run.attempt, run.desired, run.reason, run.save_on_stop, run.samples_asked,
                        self.shutting_down)
            if seen == self._handled and not (self.ladder is not None and self.ladder.expired):
                return
            with transaction() as session:
                run = self._held_run(session)
                command, save = self._wish(session, run)
                samples_asked = run.samples_asked
        control = self.run_dir.attempt(self.attempt).control
        present = read_control(control)
        if command != present.command or (command == "stop" and save and not present.save):
            write_control(control, command, save=save)
        if samples_asked > present.sample:
            write_sample_wish(control, samples_asked)
        self._handled = seen

    def _wish(self, session: Session, run: Run) -> tuple[str, bool]:
        """Move ``run`` as its wish says; the command that its trainer should now see."""
        if run.desired == "cancel":
            if run.state != "cancelling":
                move(session, run, "cancelling", reason="user")
            if self.ladder is None or self.ladder.kind != "cancel":
                self.ladder = ladder.cancel(save=run.save_on_stop)
            return "stop", run.save_on_stop
        if self.shutting_down and run.state in ("starting", "running"):
            move(session, run, "pausing", reason="shutdown")
        elif run.desired == "pause" and run.state in ("starting", "running"):
            move(session, run, "pausing", reason="user")
        elif run.desired == "run" and run.state == "pausing" and run.reason == "user" and not self.shutting_down:
            move(session, run, "running", data={"message": "The pause was taken back."})
            self.ladder = None
        if run.state != "pausing":
            return "none", False
        if self.shutting_down or run.reason == "shutdown":
            if self.ladder is None or self.ladder.kind == "pause":  # that one never escalates
                self.ladder = ladder.shutdown()
        elif self.ladder is None:
            self.ladder = ladder.pause()
        elif self.ladder.kind == "pause" and self.ladder.expired:
            return self._give_up_pause(session, run, "It was not saved within ten minutes.")
        return "pause", True

    def _give_up_pause(self, session: Session, run: Run, why: str) -> tuple[str, bool]:
        """A pause that cannot save loses nothing: the run goes on and says so."""
        append_event(session, f"run:{run.id}", "warning", attempt=run.attempt, step=run.progress.get("step") or 0,
                     data={"message": f"The run could not be paused and goes on. {why}", "code": "pause_failed"})
        move(session, run, "running", values={"desired": "run"}, data={"message": why})
        self.ladder = None
        return "none", False

    def _pump(self) -> Seen | None:
        """Store what the trainer has said, and act on it."""
        with database():
            return self.ingest.pump()

    def _heard(self, session: Session, run: Run, seen: Seen) -> None:
        """Act on a batch of events, in the transaction that stores it; an attempt that is over stores nothing."""
        self._refuse_moved_on(run, session.get(Attempt, (self.run_id, self.attempt), populate_existing=True))
        if seen.ready and run.state == "starting":
            move(session, run, "running")
        if seen.save_failed and run.state == "pausing" and run.desired == "pause" and not self.shutting_down:
            self._give_up_pause(session, run, seen.save_failed)
            self.woken.ring()  # the control file follows from the row at the next look

    # -- helpers --------------------------------------------------------------------------------------------------

    def _try(self, act) -> bool:
        """``act`` once; False where the database is away or the disk is full (training goes on meanwhile)."""
        try:
            act()
        except (Away, OSError) as error:
            if not self._warned_away:
                log.warning("away", error=str(error))
            self._warned_away = True
            return False
        if self._warned_away:
            log.info("back")
        self._warned_away = False
        return True

    def _patiently(self, act):
        """``act`` until the database answers; its result."""
        outcome: list = []
        while not self._try(lambda: outcome.append(act())):
            if self.shutting_down and (self.child is None or self.child.poll() is not None):
                raise Fenced("the database is away and the studio shuts down; the next start settles the run")
            time.sleep(RETRY_DATABASE_S)
        return outcome[-1]

    def _ranks(self) -> dict[int, int]:
        """rank -> pid: the child itself, or torchrun's children."""
        return {0: self.child.pid} if self.world_size == 1 else processes.ranks_below(self.child.pid)

    def _keep_time(self) -> None:
        """From a thread of its own: a database that is away must not hide what hangs."""
        while not self.ended.wait(stall.LOOK_EVERY_S):
            self.progress.look()

    def _on_shutdown(self, _number: int, _frame: object) -> None:
        self.shutting_down = True
        self.woken.ring()

    def _keep_lease(self) -> None:
        """Renew from a thread of its own, so that nothing the main thread waits for can stop it."""
        while not self.ended.wait(get_timing().renew_every_s):
            try:
                with database(), transaction() as session:
                    held = renew_lease(session, self.run_id, self.attempt)
            except Away:
                continue  # said by the main thread; the lease may run out, `take_back` mends it
            if not held:
                self.woken.ring()

    def _listen(self) -> None:
        """Rings shorten the poll interval; without a broker the run only hears wishes a little later."""
        import redis

        while not self.ended.is_set():
            try:
                with channels.client(socket_timeout=None, health_check_interval=15).pubsub() as ears:
                    ears.subscribe(channels.runner_channel(self.run_id))
                    for message in ears.listen():
                        if message["type"] == "message":
                            self.woken.ring()
            except (redis.RedisError, OSError):
                self.ended.wait(RETRY_DATABASE_S)


def main(arguments: list[str]) -> int:
    run_id, attempt = arguments[0], int(arguments[1])
    logging.setup("runner")
    logging.bind(run_id=run_id, attempt=attempt)
    return Runner(run_id, attempt).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
