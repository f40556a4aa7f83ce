"""The command line: `codetr` and `python -m harness`.

`harness.arguments` describes the arguments; `harness.commands` does the work and is loaded after they are read, so that
help comes at once. Exit codes: 0 done, 1 a trial failed, 2 a mistake of the user, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":  # `python -m harness`: before anything is imported that the working folder may hold as well
    from harness.system.entrance import come_first

    come_first()

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from keyword import iskeyword
from typing import TextIO

from harness.arguments import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Without `argv` this process is the command's own."""
    if argv is None:
        from harness.system.entrance import come_first

        come_first()
        from harness.system.console import begin_process

        begin_process()
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from harness.store.source import code_version, version_of

        print(f"codetr {version_of() or 'not installed'}, commit {code_version()[0] or 'unknown'}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    if args.command == "submit":
        args.asked = parser.parse_args(["run", *args.run])  # mistakes are told here, not on the cluster
        if args.store and args.asked.store and args.store != args.asked.store:
            parser.error(f"submit: --store {args.store} and --store {args.asked.store}: name one")
        args.store = args.store or args.asked.store
    if getattr(args, "store", None):
        os.environ["CODETR_STORE"] = os.path.abspath(os.path.expanduser(args.store))  # for workers as well
    from harness import commands, store_commands
    from harness.errors import StorageError, UserError
    from harness.passwords import masked
    from harness.revisit import commands as revisit_commands
    from harness.store.lease import LeaseLost
    from harness.system.console import remark
    from harness.system.places import settle
    from harness.system.process import let_segments_grow, wait_politely

    name = f"{args.command}_" if iskeyword(args.command) else args.command.replace("-", "_")
    room = next(own for own in (commands, store_commands, revisit_commands) if hasattr(own, name))
    wait_politely()  # and so for every process that this one starts
    let_segments_grow()
    try:
        if argv is None:
            for note in settle():
                if args.command == "run":
                    remark(f"note: {note}")
        code = int(getattr(room, name)(args))
        sys.stdout.flush()  # what cannot be written is told here
        return code
    except (StorageError, UserError, LeaseLost) as error:
        for line in masked(str(error)).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `codetr plan … | head`
        _drop_output()
        return 0
    except OSError as error:
        told = f"{error.filename or 'the system'}: {error.strerror or error}"  # what no room has words of its own for
        if error.filename is None and _is_lost(sys.stdout):
            _drop_output()
            told = f"standard output cannot be written ({error.strerror})"
        print(f"error: {told}", file=sys.stderr)
        return 2


def _is_lost(stream: TextIO) -> bool:
    """Does the output take no more? An empty line is tried: what failed before is not kept."""
    try:
        os.write(stream.fileno(), b"\n")
    except OSError:
        return True
    return False


def _drop_output() -> None:
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
