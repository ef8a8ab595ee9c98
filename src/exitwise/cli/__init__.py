"""The command line: thin commands over the library, and the one place where errors become exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from cyclopts import App, CycloptsError

from exitwise.catalogue.commands import COMMANDS
from exitwise.catalogue.extras import missing
from exitwise.errors import ExitwiseWarning, Interrupted, PeerError
from exitwise.processes.memory import keep_memory
from exitwise.version import __version__

BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
CONTINUED = ("train", "study")
"""Commands that go on where they were interrupted."""


def build_app(called: str = "") -> App:
    """Return the command line. A command is imported when called; the others' help is their line in the catalogue."""
    app = App(
        name="exitwise",
        help="Train, calibrate and run early-exit networks with learned sample weights.",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        help_format="plaintext",
    )
    for command in COMMANDS.values():
        app.command(command.path, name=command.name, help=None if command.name == called else command.summary)
    return app


def main(tokens: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 bad input, 1 failed otherwise, 130 interrupted, 143 ended by SIGTERM.

    ``EXITWISE_TRACEBACK=1`` prints the traceback of an error too.
    """
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)  # from importing torchvision
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files, which are refused or read all the same
    keep_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the console's encoding does not know
    tokens = sys.argv[1:] if tokens is None else tokens
    called = next(iter(tokens), "")
    with _warnings_in_one_line(), nullcontext() if called == "train" else _unwound_by_sigterm():
        _run(
            build_app(called),
            tokens,
            f" (the same `{called}` command continues from its last checkpoint)" if called in CONTINUED else "",
        )
    sys.exit(0)


def _run(app: App, tokens: Sequence[str], continues: str) -> None:
    try:
        app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _stop(_explained(error), BAD_INPUT)
    except ValueError as error:
        _stop(_one_line(error), BAD_INPUT)
    except (NotADirectoryError, FileExistsError, IsADirectoryError, PermissionError) as error:
        _stop(_one_line(error), BAD_INPUT)
    except BrokenPipeError:  # whoever reads standard output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else it is written to once more at the end
        sys.exit(FAILED)
    except OSError as error:
        _stop(_one_line(error), FAILED)
    except ModuleNotFoundError as error:
        said = missing(error, f"exitwise {next(iter(tokens), '')}")
        if said is None:
            raise
        _stop(str(said), BAD_INPUT)
    except PeerError as error:
        _stop(f"{error}; the same command continues from the last checkpoint", FAILED)
    except Interrupted as error:
        called = next(iter(tokens), "")
        saved = f"; all steps are saved, and the same `{called}` command continues" if continues else ""
        _stop(f"{error}{saved}", 128 + error.number)
    except _Terminated:
        _stop("ended by SIGTERM", TERMINATED)
    except KeyboardInterrupt:
        _stop(f"interrupted{continues}", INTERRUPTED)


def _explained(error: CycloptsError) -> str:
    """Return what is wrong with the command line; of a setting out of range, what the schema says."""
    if error.__cause__ is None:
        return str(error)
    from pydantic import ValidationError

    from exitwise.settings.schema import explain

    return explain(error.__cause__) if isinstance(error.__cause__, ValidationError) else str(error)


class _Terminated(BaseException):
    """SIGTERM came to a command that does not listen for it itself, as training does."""


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as an exception does, so that it removes what it has half written."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former or signal.SIG_DFL)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print our own warnings like errors; those of others as ever."""
    with warnings.catch_warnings():
        as_ever = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, ExitwiseWarning):
                if _leads():
                    print(f"exitwise: warning: {message}", file=sys.stderr)
            else:
                as_ever(message, category, *where, **more)

        warnings.simplefilter("always", ExitwiseWarning)
        warnings.showwarning = show
        yield


def _one_line(error: Exception) -> str:
    """Return the message; of an error in a loader's worker process, which brings its traceback along, the last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)


def _leads() -> bool:
    """Return whether to speak for all processes of a job."""
    return os.environ.get("RANK", "0") == "0"


def _stop(message: str, code: int) -> None:
    if os.environ.get("EXITWISE_TRACEBACK") == "1":
        traceback.print_exc()
    notes = getattr(sys.exception(), "__notes__", [])
    if _leads() or notes:  # what goes wrong before processes meet goes wrong in each
        print(f"exitwise: {message}{''.join(f' ({note})' for note in notes)}", file=sys.stderr)
    sys.exit(code)
