"""What the database itself refuses, whoever asks: a second fence behind ``app.core.states.move``.

- a run moves only as ``run_move`` says (filled from ``states.MOVES``), so a final state is final;
- its ``attempt`` and the number of its next event never fall;
- its configuration never changes;
- a closed attempt stays closed.

Leases, final times and unique numbers are CHECKs and unique indexes of ``app.core.models``. Every refusal is an
``IntegrityError``: it means a mistake of ours, or somebody else's program at the database.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, text

from app.core.models import RunMove
from app.core.states import MOVES

#: table, name, condition of the refusal (OLD and NEW are rows), what is said
GUARDS = (
    ("run", "run_moves", "NEW.state <> OLD.state AND NOT EXISTS (SELECT 1 FROM run_move WHERE from_state = OLD.state "
                         "AND to_state = NEW.state)", "a run does not move so"),
    ("run", "run_attempt_grows", "NEW.attempt < OLD.attempt", "the attempt of a run never falls"),
    ("run", "run_seq_grows", "NEW.next_seq < OLD.next_seq", "the events of a run are never forgotten"),
    ("run", "run_config_stays", "CAST(NEW.config AS TEXT) <> CAST(OLD.config AS TEXT)",
     "the configuration of a run never changes"),
    ("attempt", "attempt_stays_closed", "OLD.state = 'closed' AND NEW.state <> 'closed'",
     "a closed attempt stays closed"),
)


def install(connection: Connection) -> None:
    """Bring table ``run_move`` and the triggers to what this program says; in the caller's transaction."""
    connection.execute(delete(RunMove))
    connection.execute(insert(RunMove), [{"from_state": before, "to_state": after}
                                         for before, all_after in MOVES.items() for after in sorted(all_after)])
    make = _on_postgresql if connection.dialect.name == "postgresql" else _on_sqlite
    for guard in GUARDS:
        for statement in make(*guard):
            connection.execute(text(statement))


def remove(connection: Connection) -> None:
    """Take the triggers away again."""
    for table, name, _, _ in GUARDS:
        on_table = f" ON {table}" if connection.dialect.name == "postgresql" else ""
        connection.execute(text(f"DROP TRIGGER IF EXISTS {name}{on_table}"))
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"DROP FUNCTION IF EXISTS {name}()"))


def _on_sqlite(table: str, name: str, wrong: str, said: str) -> list[str]:
    return [f"DROP TRIGGER IF EXISTS {name}",
            f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} FOR EACH ROW WHEN {wrong} "
            f"BEGIN SELECT RAISE(ABORT, '{said}'); END"]


def _on_postgresql(table: str, name: str, wrong: str, said: str) -> list[str]:
    return [f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {wrong} THEN RAISE EXCEPTION '{said}' USING ERRCODE = 'check_violation'; END IF; RETURN NEW; END $$",
            f"DROP TRIGGER IF EXISTS {name} ON {table}",
            f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"]
