"""
What operators read: tables and lines made of the data that commands return.
"""

import datetime
import io
import math
import re
import sys

import llm_outlook
import llm_size
import llm_watch

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
    Return the table of ``{host: {service: ...}}`` as `llm_service.status` returns its part, and
    below it why the watch does nothing for those that are marked with a star.
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
            star = " *" if found["watch"] else ""
            rows.append(
                [
                    host,
                    name,
                    found["version"] or "-",
                    found["image"] or "-",
                    f"[{colour}]{found['healthy']} of {found['wanted']}[/]{star}",
                    age(found["since"]),
                    str(found["restarts"]),
                    " of ".join(llm_size.rounded(found[key]) for key in ("memory", "memory_limit")),
                    f"{found['cpus']:.2f} of {found['cpus_limit']:g}",
                ]
            )
    lines = [f"* {line}" for line in _noted(hosts, "watch")]
    return "\n".join([table(None, columns, rows), *lines])


def _noted(hosts, key):
    """Return the lines on services with a note under ``key``, one of each note and host."""
    named = {}
    for host, services in hosts.items():
        for name, found in (services or {}).items():
            if found.get(key):
                named.setdefault((host, " ".join(found[key].split())), []).append(name)
    return [f"{host}: {', '.join(names)}: {why}" for (host, why), names in named.items()]


RESULTS = {"done": "green", "refused": "yellow", "taken back": "yellow", "running": "cyan"}


def releases(found):
    """
    Return the table of releases, as ``llm_release.Releases`` keeps them.
    """
    columns = [">Release", "What", "When", "Who", "Commit", ">Seconds", "Result", "Changed"]
    rows = []
    for each in found:
        colour = RESULTS.get(each["result"], "red")
        stable = ", stable" if each["stable"] else ""
        changed = sorted({_service(what) for of in each["changes"].values() for what in of})
        rows.append(
            [
                str(each["number"]),
                each["what"],
                each["when"][:19].replace("T", " "),
                each["who"],
                each["commit"] or "-",
                str(each["seconds"] if each["seconds"] is not None else "-"),
                f"[{colour}]{each['result']}{stable}[/]",
                ", ".join(changed) or "-",
            ]
        )
    return table(None, columns, rows) if rows else "There is no release yet"


def _service(what):
    """Return the service of ``llm-rate-limiter-1-g3`` or ``files of tail``."""
    named = re.fullmatch(r"[^-]+-(.+)-\d+-g\d+", what)
    return named[1] if named else what.removeprefix("files of ")


def release(found):
    """
    Return one release in full.
    """
    lines = [ended(found), f"{found['when']}, by {found['who']}, commit {found['commit'] or '-'}"]
    for host, changes in found["changes"].items():
        lines += [f"{host}: {what}: {', '.join(causes)}" for what, causes in changes.items()]
    rows = [
        [host, service, replica, one["container"], one["image"]]
        for host, services in found["hosts"].items()
        for service, replicas in services.items()
        for replica, one in replicas.items()
    ]
    if rows:
        columns = ["Host", "Service", ">Replica", "Container", "Image"]
        lines.append(table("What serves since then:", columns, rows))
    return "\n".join(lines)


ENDINGS = {
    "done": "is stable",
    "refused": "was refused: nothing was changed",
    "taken back": "failed and was taken back: what served before serves again",
    "not taken back": "failed and was not taken back whole: see what runs with salt-run llm.status",
    "unknown": "failed, and not every host says what runs there: see salt-run llm.status",
    "interrupted": "was killed: deploy again, or go back with salt-run llm.rollback",
    "running": "is under way",
}


def ended(found):
    """
    Return the paragraph that tells how a release has ended, and why.
    """
    seconds = "" if found["seconds"] is None else f" after {found['seconds']} s"
    first = f"Release {found['number']} ({found['what']}) {ENDINGS[found['result']]}{seconds}"
    changed = [what for of in found["changes"].values() for what in of]
    first += f": {', '.join(changed)}" if changed else ""
    return "\n".join([first, *(f"  {line}" for line in found["why"])])


def foreseen(outcome):
    """
    Return what an orchestration in test mode says that it would do.
    """
    import llm_outcome

    found = llm_outcome.found(outcome)
    if failures := llm_outcome.failures(found):
        return "\n".join(failures)
    lines = [f"{each.host}: {each.id}: {each.comment}" for each in found if each.changed]
    return "\n".join(lines) or "Nothing to do: all is as declared"


def plan(found):
    """
    Return the tables of what ``salt-run llm.plan`` has found, one a host, its problems, and one
    line that sums up.
    """
    parts = []
    for host, foreseen in found["hosts"].items():
        if rows := [*_preparations(foreseen), *_services(foreseen)]:
            columns = ["Tier", "Service", "Do", "Why", "Clients notice", ">At most"]
            parts.append(table(f"[bold]{host}[/]", columns, rows))
    parts += unheeded(found["hosts"])
    parts += [f"Problem: {problem}" for problem in found["problems"]]
    return "\n".join([*parts, outcome(found["summary"], found["problems"])])


def unheeded(hosts):
    """
    Return the lines on what is in maintenance and changed all the same.

    hosts
        ``{host: what llm_change.foreseen returned}``.
    """
    changed = {
        host: {
            name: service
            for name, service in foreseen["services"].items()
            if llm_outlook.is_changed(service)
        }
        for host, foreseen in hosts.items()
    }
    return [f"{line}; a deploy does not heed it" for line in _noted(changed, "maintenance")]


def _preparations(foreseen):
    for each in foreseen["preparations"]:
        why = _plain(", ".join(each["causes"]))
        yield ["before", f"{each['what']} {_plain(each['name'])}", each["do"], why, "nothing", "-"]


def _plain(text):
    """Return ``text`` as it is to stand in a table."""
    return text.replace("[", r"\[")


ACTION_COLOURS = {"create": "green", "start": "green", "replace": "yellow", "remove": "red"}


def _services(foreseen):
    order = sorted(foreseen["services"].items(), key=lambda pair: pair[1]["tier"] or math.inf)
    for name, service in order:
        tier = str(service["tier"] or "outside")
        notice, seconds = noticed(service["traffic"]), duration(service["seconds"])
        for action in service["actions"]:
            if (do := action["action"]) == "none":
                continue
            who = f"{name} {action['replica']}"
            shown = f"[{ACTION_COLOURS.get(do, 'cyan')}]{do}[/]"
            why = _plain(", ".join(action["causes"]))
            yield [tier, who, shown, why, notice, seconds]
            tier = notice = seconds = ""
        for do, why in _quiet(service):
            yield [tier, name, do, _plain(why), "nothing", "-"]
            tier = ""


def _quiet(service):
    """Yield what is done to a service that replaces no container."""
    if service["live_files"]:
        yield "write", f"read without a restart: {', '.join(sorted(service['live_files']))}"
    if service["files"] and all(each["action"] == "none" for each in service["actions"]):
        yield "write" if service["tier"] else "remove", ", ".join(sorted(service["files"]))
    if service["certificate"]:
        yield "renew", f"certificate: {'; '.join(service['certificate'])}"
    if service["routes"]:
        yield "route", "requests do not go to the containers that run"


def noticed(traffic):
    """
    Return in words what clients notice of a change, as `llm_outlook.service` tells it.
    """
    return {
        "none": "nothing",
        "gap": f"a gap of at most {duration(traffic['seconds'])}",
        "starts": "serves from then on",
        "ends": "serves no more",
    }[traffic["effect"]]


def duration(seconds):
    """
    Return seconds as ``45 s``, ``6 min`` or ``1 h 5 min``, rounded up.
    """
    if seconds <= 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def outcome(summary, problems=()):
    """
    Return one line on the summary of `llm_outlook.summary`.
    """
    if problems:
        count = f"{len(problems)} problems" if problems[1:] else "1 problem"
        return f"A deploy would fail, or cannot be foreseen: {count}"
    if not summary["changes"]:
        return "Nothing to do"
    counts = summary["actions"]
    words = [f"{count} to {do}" for do, count in sorted(counts.items()) if do != "none"]
    if counts.get("none"):
        words.append(f"{counts['none']} unchanged")
    if summary["preparations"]:
        words.append(f"{summary['preparations']} to prepare first")
    gaps = [
        f"{name} has a gap of at most {duration(seconds)}"
        for name, seconds in summary["gaps"].items()
    ]
    gaps += [f"{name} serves no more" for name in summary["ends"]]
    loss = ", ".join(gaps) or "no request is lost"
    longest = f"at most {duration(summary['seconds'])}"
    if summary["unlimited"]:
        longest += f" and what {summary['unlimited']} downloads or builds take"
    return "; ".join([", ".join(words), loss, longest])


def pruned(found, test):
    """
    Return what ``salt-run llm.prune`` has removed, or in ``test`` would remove.
    """
    rows = []
    for host, of in found["hosts"].items():
        rows += [[host, name, "container", "-"] for name in of["containers"]]
        for name, size in of["images"].items():
            rows.append([host, name, "image", llm_size.rounded(size)])
    columns = ["Host", "Would be removed" if test else "Removed", "What", ">Size"]
    none = "Nothing to remove"
    return "\n".join([table(None, columns, rows) if rows else none, *found["problems"]])


def history(found):
    """
    Return the table of what ``salt-run llm.history`` has found.
    """
    columns = ["When", "Host", "What", "Seen", "Done", "Result"]
    rows = []
    for each in found["history"]:
        what = each["container"] or each["service"]
        when = each["time"][:19].replace("T", " ")
        lines = [each["result"], *each.get("log", ())]
        cells = [when, each["host"], what, each["seen"], each["do"], "\n".join(lines)]
        rows.append([_plain(COLOURS.sub("", cell)) for cell in cells])
    shown = table(None, columns, rows) if rows else "Nothing was amiss"
    return "\n".join([shown, *(f"{host}: no answer" for host in found["silent"])])


def maintenance(found):
    """
    Return in lines what ``salt-run llm.maintenance`` has found.
    """
    lines = [
        f"{host}: {llm_watch.told(name, each)}"
        for host, entries in found["maintenance"].items()
        for name, each in entries.items()
    ]
    lines += [f"{host}: no answer" for host in found["silent"]]
    return "\n".join(lines) or "Nothing is left alone"


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
    Return the lines of ``{container: [line]}``, each with its container when there are several.
    """
    several = len(containers) > 1
    return [
        f"{name}: {line}" if several else line
        for name, lines in containers.items()
        for line in lines
    ]


def errors(containers, lines):
    """
    Return the lines of ``{container: [line]}`` that were found among the last ``lines`` of each,
    and of those that have none a sentence.
    """
    quiet = [name for name, said in containers.items() if not said]
    none = f"No errors in the last {lines} lines of {', '.join(quiet)}"
    return log(containers) + ([none] if quiet else [])


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
