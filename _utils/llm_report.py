"""
What operators read: tables and lines made of the data that commands return.
"""

import datetime
import io
import re
import sys

import llm_size

WRITTEN = re.compile(r"(\d{4}-\d\d-\d\dT[\d:.]+Z) ")  # the engine's time before a line
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def age(start, now=None):
    """
    Return the time since ``start``, an ISO 8601 time, as ``3 d 4 h``, ``5 h 2 min`` or ``41 s``.
    """
    if not start:
        return "-"
    now = now or datetime.datetime.now(datetime.UTC)
    seconds = max(0, int((now - datetime.datetime.fromisoformat(start)).total_seconds()))
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def table(title, columns, rows):
    """
    Return a table as text, in colours where standard output is a terminal.

    columns
        Their headings; a heading that starts with ``>`` is that of a column of numbers.
    rows
        Lists of texts, which may hold rich's markup.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        shown.add_column(column.removeprefix(">"), justify="right" if right else "left")
    for row in rows:
        shown.add_row(*row)
    terminal = sys.stdout.isatty()
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=None if terminal else 140)
    console.print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def status(hosts):
    """
    Return the table of ``{host: {service: ...}}`` as `llm_service.status` returns its part.
    """
    columns = ["Host", "Service", "Version", "Image", ">Healthy", ">Up", ">Restarts"]
    columns += [">Memory", ">CPU"]
    rows = []
    for host, services in hosts.items():
        if not services:
            rows.append([host, "[red]no answer[/]", *[""] * 7])
            continue
        for name, found in services.items():
            colour = "green" if found["healthy"] == found["wanted"] else "red"
            rows.append(
                [
                    host,
                    name,
                    found["version"] or "-",
                    found["image"] or "-",
                    f"[{colour}]{found['healthy']} of {found['wanted']}[/]",
                    age(found["since"]),
                    str(found["restarts"]),
                    " of ".join(llm_size.rounded(found[key]) for key in ("memory", "memory_limit")),
                    f"{found['cpus']:.2f} of {found['cpus_limit']:g}",
                ]
            )
    return table(None, columns, rows)


def completion(found):
    """
    Return the table of a completion, as `llm_completion.verify` returns it.
    """
    rows = [[hop, f"{seconds * 1000:.1f} ms"] for hop, seconds in found["hops"].items()]
    rows.append(["all of them", f"{found['total'] * 1000:.1f} ms"])
    rows.append(["first token, streamed", f"{found['first_token'] * 1000:.1f} ms"])
    title = f"{found['model']} answered with {found['tokens']} tokens"
    return table(title, ["Hop", ">Its own time"], rows)


def log(containers):
    """
    Return the lines of ``{container: [line]}``, each with its container when there are several,
    and without colours.
    """
    several = len(containers) > 1
    return [
        COLOURS.sub("", f"{name}: {line}" if several else line)
        for name, lines in containers.items()
        for line in lines
    ]


def unseen(container, lines, shown):
    """
    Return those of the ``lines`` of ``container`` that were not shown yet, without their times.

    lines
        As `llm_container.logs` returns them with their times; a piece without one belongs to the
        line before it.
    shown
        The time of the last line that was shown, by container; it is brought up to date.
    """
    last = shown.get(container, "")
    written, latest = last, last
    found = []
    for line in lines:
        if begin := WRITTEN.match(line):
            written = begin[1]
        latest = max(latest, written)
        if written > last:
            found.append(line[begin.end() :] if begin else line)
    shown[container] = latest
    return found
