"""`tools/verify`: the numbers that README and the site state are measured again."""

import argparse
import sys
from collections.abc import Iterable

from tools import stated
from tools.stated import pages, running
from transformer_jax.errors import InputError, nearest


def main(arguments: list[str] | None = None) -> int:
    """Runs the program and returns its exit code; 1: a number is outside of its range, or a command failed."""
    parser = argparse.ArgumentParser(prog="tools/verify", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to run")
    parser.add_argument("--minutes", type=float, help="run what fits into this time")
    parser.add_argument("--stale", action="store_true", help="list the entries whose code has changed")
    parser.add_argument("--unchecked", action="store_true", help="list the measurements without an entry")
    parser.add_argument("--tables", action="store_true", help="write the generated parts of the pages")
    asked = parser.parse_args(arguments)
    try:
        book = stated.read()
        if asked.unchecked:
            return _unchecked(book)
        if asked.tables:
            return _tables(book)
        if unknown := [name for name in asked.names if name not in book["measured"]]:
            raise InputError(f"no entry {unknown[0]!r} in {stated.FILE}{nearest(unknown[0], book['measured'])}")
        if not asked.names and asked.minutes is None:
            return _list(book, stale=asked.stale)
        return _run(book, asked.names, asked.minutes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(book: stated.Book, names: list[str], minutes: float | None) -> int:
    """Runs the entries that are named, or what fits into `minutes`."""
    left, failed, ran = float("inf") if minutes is None else minutes, [], 0
    for name in names or running.in_order(book):
        entry = book["measured"][name]
        if why := running.why_not(entry, left):
            print(f"skipped {name}: it {why}", flush=True)
            continue
        seeds = f", seeds {', '.join(map(str, entry['seeds']))}" if "seeds" in entry else ""
        print(f"running {name}: {entry['command']}{seeds}", flush=True)
        try:
            seen, wrong = running.run(name, entry)
        except InputError as error:
            failed.append(str(error))
            continue
        left, ran, failed = left - seen["minutes"], ran + 1, failed + wrong
        for number, value in seen["values"].items():
            wanted = entry["numbers"][number]
            verdict = "holds" if stated.holds(wanted, value) else "DOES NOT HOLD"
            print(f"  {name}:{number} {value:.6g}, {verdict} in {wanted.get('holds', 'any range')}", flush=True)
        if not wrong:  # a number that does not hold is reported, and the pages keep the last one that did
            book["measured"][name] = {**entry, "seen": seen}
            stated.write(book)
            _tables(book)
    for line in failed:
        print(f"does not hold: {line}", file=sys.stderr)
    print(f"{ran} of {len(names or book['measured'])} entries ran, {len(failed)} faults")
    return 1 if failed else 0


def _tables(book: stated.Book) -> int:
    for page in pages.write(book):
        print(f"written: {page}")
    return 0


def _list(book: stated.Book, *, stale: bool) -> int:
    """Prints each entry, or those whose code has changed."""
    for name, entry in sorted(book["measured"].items()):
        seen = entry.get("seen")
        if seen is None:
            print(f"{name}: never run; about {entry['minutes']:g} minutes")
            continue
        changed = stated.changed(seen)
        if changed:
            print(f"{name}: measured at {seen['commit']} ({seen['date']}), code changed since: {', '.join(changed)}")
        elif not stale:
            print(f"{name}: measured at {seen['commit']} ({seen['date']}), {_values(seen['values'].items())}")
    return 0


def _values(values: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in values)


def _unchecked(book: stated.Book) -> int:
    """Prints the measurements without an entry."""
    found = pages.unchecked(book)
    for page, lines in found.items():
        print("\n".join(f"{page}: {line}" for line in lines))
    print(f"{sum(map(len, found.values()))} without an entry")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
