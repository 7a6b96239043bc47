"""The command `python -m isonorm audit`."""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isonorm._audit import audit
from isonorm._audit.dimensions import DIMENSIONS
from isonorm._audit.elsewhere import processes
from isonorm._audit.memory import FORMATS
from isonorm._audit.models import audit_model, load
from isonorm._audit.report import summary
from isonorm._audit.subject import AuditError

EPILOG = """\
examples:
  python -m isonorm audit torch.nn.functional.layer_norm --hidden 4096
  python -m isonorm audit isonorm.rms_norm torch.nn.RMSNorm --hidden 768 4096 --dtype float32 bfloat16
  python -m isonorm audit torch.nn.functional.group_norm --hidden 64,7,7 --option num_groups=8
  python -m isonorm audit --model sentence-transformers/all-MiniLM-L6-v2 --json minilm.json

The exit status is 0 when all bits are the same, 1 when some are not, 2 when there was nothing to compare.
"""


def add_to(commands: Any) -> None:
    """Add the command to a program's."""
    parser = commands.add_parser(
        "audit",
        help="find where the bits of a norm change",
        description="Find where the bits of a norm change: with the batch, the layout of memory, threads, or from run"
        " to run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "norms", nargs="*", metavar="NORM", help="import path of a function of x, a module, or a module's class"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the norms of a Hugging Face model: its name, folder or GGUF file"
    )
    parser.add_argument("--every", action="store_true", help="each norm of the model, not one of each kind")
    parser.add_argument("--hidden", nargs="+", type=_row, metavar="N", help="elements of a row; 64,7,7 for more axes")
    parser.add_argument("--dtype", nargs="+", metavar="TYPE", dest="dtypes", help=f"types of x: {', '.join(FORMATS)}")
    parser.add_argument(
        "--dimension", nargs="+", metavar="NAME", dest="dimensions", help=f"only these: {', '.join(DIMENSIONS)}"
    )
    parser.add_argument("--rows", type=int, help="the largest batch")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="numbers of threads to try")
    parser.add_argument("--arrays", choices=["numpy", "torch"], help="what the function takes; tried by default")
    parser.add_argument(
        "--option", action="append", type=_option, default=[], metavar="NAME=VALUE", help="a keyword for the norm"
    )
    parser.add_argument("--seed", type=int, default=0, help="where the random rows begin (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports here as well")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Audit what the arguments name, print it, and return the exit status."""
    try:
        _check(arguments)
        kept = {name: getattr(arguments, name) for name in ("dtypes", "dimensions", "rows", "threads", "seed")}
        model = arguments.model
        with processes():
            report = _of_model(model, arguments.every, kept) if model else _of_norms(arguments, kept)
        if arguments.json:
            write(arguments.json, report)
    except AuditError as error:
        print(f"isonorm audit: {error}", file=sys.stderr)
        return 2
    return 0 if report["ok"] else 1


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.norms) == bool(arguments.model):
        raise AuditError("either import paths of norms or --model was expected")
    if arguments.norms and not arguments.hidden:
        raise AuditError("--hidden was expected: how many elements a row has, such as --hidden 4096")
    if arguments.model and arguments.hidden:
        raise AuditError("--hidden goes with import paths: the norms of a model know their own")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise AuditError(f"the folder of --json {arguments.json} does not exist")


def _of_norms(arguments: argparse.Namespace, kept: dict[str, Any]) -> dict[str, Any]:
    reports = []
    norms = [(path, find(path)) for path in arguments.norms]
    for path, norm in norms:
        for row in arguments.hidden:
            options = dict(arguments.option)
            reports.append(audit(norm, row, name=path, arrays=arguments.arrays, options=options, **kept))
            print(reports[-1], end="\n\n", flush=True)
    if len(reports) > 1:
        print(summary(reports))
    return {"ok": all(report.ok for report in reports), "reports": [report.to_dict() for report in reports]}


def _of_model(name: str, every: bool, kept: dict[str, Any]) -> dict[str, Any]:
    report = audit_model(load(name), every=every, name=name, **kept)
    if not report.reports:
        reasons = "; ".join(f"{group.kind}: {group.reason}" for group in report.groups)
        raise AuditError(f"no norm of {name} could be audited: {reasons}")
    print(report)
    return report.to_dict()


def find(path: str) -> Any:
    """What an import path names.

    Raises
    ------
    AuditError
        With the part that was found, and names like the one that was not.
    """
    parts = path.replace(":", ".").split(".")
    found, rest = None, parts
    for count in range(1, len(parts) + 1):
        module = ".".join(parts[:count])
        try:
            found, rest = importlib.import_module(module), parts[count:]
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
                raise AuditError(f"{module} cannot be imported: {error}") from error
            break
        except Exception as error:
            raise AuditError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    if found is None:
        raise AuditError(f"there is no module {parts[0]!r}: is the package installed, and is the name right?")
    for done, name in enumerate(rest, len(parts) - len(rest)):
        if not hasattr(found, name):
            like = difflib.get_close_matches(name, dir(found), n=3)
            hint = f": did you mean {' or '.join(like)}?" if like else ""
            raise AuditError(f"{'.'.join(parts[:done])} has no {name!r}{hint}")
        found = getattr(found, name)
    if not callable(found):
        raise AuditError(f"{path} is a {type(found).__name__}, but a function of x, a module or its class was expected")
    return found


def write(path: Path, report: dict[str, Any]) -> None:
    """Write JSON to a file, which appears when it is whole."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise AuditError(f"{path} cannot be written: {error}") from error


def _row(text: str) -> int | tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of elements, such as 4096, nor a shape, such as 64,7,7"
        ) from None
    return sizes if len(sizes) > 1 else sizes[0]


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `python -m isonorm`."""
    parser = argparse.ArgumentParser(
        prog="python -m isonorm", description="Normalization layers with the same bits everywhere."
    )
    add_to(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    parsed = parser.parse_args(arguments)
    status: int = parsed.run(parsed)
    return status
