"""`bgectl doctor`: every check, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from bgectl import __version__, console
from bgectl.doctor import packages
from bgectl.doctor.finding import Finding
from bgectl.doctor.hub import hub
from bgectl.doctor.machine import machine
from bgectl.doctor.torch_probe import probe
from bgectl.options.doctor import DoctorOptions

SHOWN = {"ok": "ok", "warning": "WARNING", "error": "ERROR", "absent": "not there"}


def run(options: DoctorOptions) -> int:
    """Check, print on stdout, and return the exit code: 1 where training would fail, else 0."""
    found = list(findings(options))
    failed = any(finding.status == "error" for finding in found)
    if options.format == "json":
        told = {"bgectl": __version__, "trains": not failed, "checks": [finding.as_json() for finding in found]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return int(failed)
    rows = [[finding.check, SHOWN[finding.status], finding.found] for finding in found]
    console.table(f"bgectl {__version__}", ["check", "", "found"], rows, on_stdout=True)
    for status, title in (("error", "To train at all"), ("warning", "Worth mending"), ("absent", "Only if wanted")):
        lines = [(finding.check, finding.mend) for finding in found if finding.status == status and finding.mend]
        if lines:
            print(f"{title}:")
            print("".join(f"  {check}: {mend}\n" for check, mend in lines))
    count = sum(finding.status == "warning" for finding in found)
    warned = f"{count} warning{'s' if count != 1 else ''}"
    console.info("`bgectl train` would fail here" if failed else f"`bgectl train` can run here; {warned}")
    return int(failed)


def findings(options: DoctorOptions) -> Iterator[Finding]:
    """All checks in the order they are shown."""
    groups: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("python", lambda: [packages.python()]), ("bgectl", lambda: [packages.itself()]), ("torch", probe),
        ("core-packages", packages.core), ("pairs", packages.pairs), ("optional-packages", packages.optional),
        ("hub", lambda: hub(offline=options.offline, timeout=options.timeout)), ("machine", machine),
    )  # fmt: skip
    for name, checks in groups:
        yield from unbroken(name, checks)


def unbroken(name: str, checks: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of some checks; one that breaks is a finding too, and does not end the others."""
    try:
        yield from checks()
    except Exception as problem:
        yield Finding(name, "warning", f"could not be checked: {type(problem).__name__}: {problem}")
