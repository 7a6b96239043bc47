"""The norms of a Hugging Face model, with its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isonorm._audit import audit
from isonorm._audit.elsewhere import processes
from isonorm._audit.report import Report, summary
from isonorm._audit.subject import AuditError


@dataclass(frozen=True)
class Group:
    """The norms of a model that are alike but for their weights.

    Attributes
    ----------
    kind : str
        Their class.
    modules : tuple of str
        Their names in the model.
    report : Report or None
        Of the first of them; None where it could not be audited.
    reason : str
        Why it could not.
    """

    kind: str
    modules: tuple[str, ...]
    report: Report | None
    reason: str = ""


@dataclass(frozen=True)
class ModelReport:
    """The norms of a model; printed, a report of each group and a summary.

    Attributes
    ----------
    name : str
        The model.
    groups : tuple of Group
        Its norms.
    """

    name: str
    groups: tuple[Group, ...]

    @property
    def ok(self) -> bool:
        """Whether no bit changed in any norm that was audited."""
        return all(report.ok for report in self.reports)

    @property
    def reports(self) -> tuple[Report, ...]:
        return tuple(group.report for group in self.groups if group.report is not None)

    def to_dict(self) -> dict[str, Any]:
        """All of it, of types that JSON has."""
        groups = [
            {
                "kind": group.kind,
                "modules": list(group.modules),
                "report": group.report and group.report.to_dict(),
                "reason": group.reason,
            }
            for group in self.groups
        ]
        return {"model": self.name, "ok": self.ok, "groups": groups}

    def __str__(self) -> str:
        lines = [f"{self.name}: {sum(len(group.modules) for group in self.groups)} norms"]
        for group in self.groups:
            left = f"; left out: {group.reason}" if group.report is None else f"; audited: {group.modules[0]}"
            lines.append(f"  {len(group.modules)} x {group.kind}{left}")
        return "\n\n".join(["\n".join(lines), *map(str, self.reports), summary(self.reports)])


def audit_model(model: Any, *, every: bool = False, name: str | None = None, **options: Any) -> ModelReport:
    """Audit the norms of a model: modules without parts whose class has Norm in its name.

    Parameters
    ----------
    model : torch.nn.Module
        With its weights; it is not changed.
    every : bool
        Whether each norm is audited, rather than one of each class, shape and eps.
    name : str, optional
        What the report calls the model.
    options
        As of `audit`.

    Returns
    -------
    ModelReport

    Raises
    ------
    AuditError
        Where the model has no norm.

    Examples
    --------
    >>> from transformers import AutoModel  # doctest: +SKIP
    >>> print(isonorm.audit_model(AutoModel.from_pretrained("folder")))  # doctest: +SKIP
    """
    found: dict[Any, list[tuple[str, Any]]] = {}
    for path, module in norms(model):
        found.setdefault(path if every else (type(module), repr(module)), []).append((path, module))
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise AuditError(
            f"{type(model).__name__} has no norm: a module without parts whose class has Norm in its name was expected,"
            f" but its classes are {', '.join(kinds)}"
        )
    with processes():
        groups = tuple(_group(members, options) for members in found.values())
    return ModelReport(name or type(model).__name__, groups)


def norms(model: Any) -> Iterator[tuple[str, Any]]:
    """The norms of a model and their names."""
    for path, module in model.named_modules():
        if "Norm" in type(module).__name__ and not list(module.children()):
            yield path, module


def load(name: str) -> Any:
    """A model by the name that `transformers` knows it by, or from a folder or a GGUF file.

    Raises
    ------
    AuditError
        Where it cannot be loaded.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise AuditError(f"--model needs PyTorch and transformers, which cannot be imported: {error}") from error
    folder, options = _place(name)
    try:
        return AutoModel.from_pretrained(folder, dtype="auto", **options).eval()
    except Exception as error:  # of as many types as a model's files have faults
        text = str(error).strip().splitlines()
        raise AuditError(f"{name} cannot be loaded: {text[0] if text else type(error).__name__}") from error


def _place(name: str) -> tuple[str, dict[str, str]]:
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if not path.is_dir():
        if path.is_absolute() or path.suffix == ".gguf" or name.startswith("."):
            raise AuditError(f"{name} does not exist, but a folder with config.json or a GGUF file was expected")
        return name, {}
    files = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file():
        return name, {}
    if len(files) != 1:
        raise AuditError(f"{name} has no config.json and {len(files)} GGUF files: name the file, or another folder")
    return name, {"gguf_file": files[0].name}


def _group(members: list[tuple[str, Any]], options: dict[str, Any]) -> Group:
    paths = tuple(path for path, _ in members)
    module = members[0][1]
    kind = type(module).__name__
    row = _row_of(module)
    if row is None:
        return Group(kind, paths, None, "its weight does not tell the shape of a row")
    others = f", and {len(paths) - 1} alike" if len(paths) > 1 else ""
    try:
        return Group(kind, paths, audit(copy.deepcopy(module), row, name=f"{kind} ({paths[0]}{others})", **options))
    except AuditError as error:
        return Group(kind, paths, None, str(error))


def _row_of(module: Any) -> tuple[int, ...] | None:
    """The shape of a row, from what the module says of itself."""
    shape = getattr(module, "normalized_shape", None)
    if shape is None:
        weight = getattr(module, "weight", None)
        shape = getattr(weight, "shape", None)
    return tuple(int(size) for size in shape) if shape is not None and len(shape) else None
