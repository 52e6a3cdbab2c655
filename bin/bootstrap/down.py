"""The way back: stop the platform, or remove every trace of it, also where half is broken."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import llm_outcome

from . import configuration, daemons, engine, packages, variables
from .installation import REPOSITORY, VENV
from .progress import Failure, Progress, run

ENGINE_FOLDERS = ("/var/lib/containerd", "/etc/docker", "/run/docker", "/run/containerd")
MADE_BY_CONTAINERD = (
    "/etc/cni/net.d", "/etc/cni", "/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd",
)  # fmt: skip
OUR_IMAGES = ("llm.image", "llm.test")  # labels
SYSCTL = Path("/run/sysctl.d/60-llm.conf")  # of salt/ingress/running.sls
LOCKED = "Nobody else changes the platform"  # of orch/teardown.sls
GENERATED = ("__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis")


def down(installation):
    """Stop the platform's containers and daemons and keep its data; return the exit code."""
    progress = Progress(2)
    stop_platform(progress, installation)
    progress.step("Stop Salt's daemons")
    daemons.of(installation).stop()
    progress.done("stopped")
    progress.say(f"\nDown. Its data stays in {installation.root} and in its volumes.")
    return 0


def stop_platform(progress, installation):
    """Stop the containers: in their order by Salt, and what is left by the engine."""
    progress.step("Stop the platform's containers")
    answers = engine.answers()
    if answers and daemons.of(installation).is_whole():
        teardown(progress, installation)
    left = containers(installation) if answers else []
    if left:
        daemons.of(installation).stop()  # or the minion's watch starts them again
    for container in left:
        name = container["Names"][0].lstrip("/")
        progress.waiting(f"{name} stops")
        stay_down(container["Id"])
        engine.ask("POST", f"/containers/{container['Id']}/stop", t=10)
    progress.done("stopped" if answers else "no engine answers: nothing runs")


def teardown(progress, installation):
    """
    Remove the containers in their order by Salt; say why where that fails.

    Raises ``Failure`` where somebody else changes the platform, who would start them again.
    """
    answer, log = installation.log / "teardown.json", installation.log / "down"
    answer.unlink(missing_ok=True)
    argv = installation.command(
        "salt-run", "state.orchestrate", "orch.teardown", "--out=json", f"--out-file={answer}"
    )
    env = variables.installation(installation)
    if not run(progress, argv, log, "orch.teardown", env=env, check=False):
        return
    found = llm_outcome.read(answer)
    for truth in found:
        if truth.id == LOCKED and truth.result is False:
            raise Failure(truth.comment)
    progress.say("orch.teardown failed: the engine stops what is left", indent=6)
    for line in [*llm_outcome.failures(found), f"Log: {log}"]:
        progress.say(line, indent=6)


def containers(installation, **more):
    """Return the containers of this installation that run."""
    return engine.labelled("containers", f"llm.site={installation.name}", **more)


def stay_down(container):
    """Keep the engine from starting ``container`` when it starts itself."""
    engine.ask("POST", f"/containers/{container}/update", {"RestartPolicy": {"Name": "no"}})


def purge(installation, sure):
    """Remove what is ours and nothing else, after asking; return the exit code."""
    progress = Progress(5)
    if not sure:
        confirm(installation)
    progress.step("Stop Salt's daemons")
    daemons.of(installation).stop()
    progress.done("stopped")
    progress.step("Remove containers, networks, volumes and images")
    left = []
    progress.done(remove_objects(progress, installation, left))
    progress.step("Remove the container engine, where the platform brought it")
    progress.done(remove_engine(progress, installation, left))
    progress.step(f"Remove {installation.root}")
    brought = (installation.marker() or {}).get("packages", [])
    progress.done(remove_root(installation))
    progress.step("Remove what was generated in the checkout")
    remove_generated(installation)
    progress.done("removed")
    if brought:
        progress.say(
            "\nThese packages came with `make up` and stay, because others may use them by now:"
            f"\n  apt-get purge --autoremove {' '.join(brought)}"
        )
    if left:
        raise Failure("this is left:", *left)
    progress.say("\nNothing of the platform is left.")
    return 0


def confirm(installation):
    """Ask whether all this shall go."""
    print(
        "This removes the platform from this machine, its data and keys included:\n"
        f"  - Salt's daemons of {installation.conf}\n"
        f"  - containers, networks and volumes labelled llm.site={installation.name},"
        " images labelled llm.image\n"
        f"  - {installation.root}\n"
        f"  - the secrets in {installation.pillar}/secrets that git does not know\n"
        f"  - {VENV} and the caches beside it"
    )
    if not sys.stdin.isatty():
        raise Failure("there is nobody to ask: say `make purge YES=1`")
    if input("Remove all this? Type yes: ").strip() != "yes":
        raise Failure("nothing was removed")


def remove_objects(progress, installation, left):
    """Remove what the engine holds of ours; return how much, add to ``left`` what stays."""
    if not engine.answers():
        return "no engine answers: it holds nothing"
    label = f"llm.site={installation.name}"
    counts = []
    for kind, key, query in (
        ("containers", "Id", {"force": 1, "v": 1}),
        ("networks", "Id", {}),
        ("volumes", "Name", {"force": 1}),
    ):
        found = engine.labelled(kind, label, **({"all": 1} if kind == "containers" else {}))
        for one in found:
            progress.waiting(f"{kind[:-1]} {(one.get('Names') or [one.get('Name')])[0]} goes")
            left += filter(None, [engine.remove(kind, one[key], **query)])
        counts.append(f"{len(found)} {kind}")
    if engine.labelled("containers", "llm.site", all=1):
        return ", ".join([*counts, "no images: another installation here uses them"])
    return ", ".join([*counts, f"{remove_images(progress)} images"])


def remove_images(progress):
    """Remove the platform's images, those built on others first; return how many."""
    count = 0
    while images := [
        image for label in OUR_IMAGES for image in engine.labelled("images", label, all=1)
    ]:
        gone = 0
        for image in images:
            progress.waiting(f"image {(image['RepoTags'] or [image['Id'][7:19]])[0]} goes")
            for name in image["RepoTags"] or [image["Id"]]:
                gone += not engine.remove("images", name)
        if not gone:
            break  # somebody else's container uses the rest
        count += gone
    return count


def remove_engine(progress, installation, left):
    """Remove the engine that the platform brought; return what happened, add to ``left``."""
    noted = notes(installation.root)
    if not noted:
        return "it was here before: left alone"
    theirs = others() if engine.answers() else []
    data = engine.data_folder()
    keeper = daemons.of(installation)
    if theirs and not noted.get("supervised"):
        return f"left alone: others use it by now ({', '.join(theirs)})"
    keeper.stop_engine()
    if theirs:
        keeper.start_engine_alone()
        return f"runs on, unsupervised: others use it by now ({', '.join(theirs)})"
    if "docker.io" not in noted.get("packages", []):
        return "stopped: it was installed before, and the platform had started it"
    left += uninstall(progress, noted, data, installation.log / "down")
    return "removed"


def notes(root):
    """Return what the states noted in ``root`` of the engine: nothing where it was here before."""
    try:
        return json.loads((root / "engine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def uninstall(progress, noted, data, log):
    """Remove an engine that is stopped, as ``noted``, with its ``data``; return what went wrong."""
    engine.forget(noted.get("forwarding"))
    problems = []
    try:
        packages.remove(progress, noted["packages"], log)
    except Failure as failure:
        problems += failure.problems
    engine.remove_folders((data, *ENGINE_FOLDERS))
    Path("/run/docker.sock").unlink(missing_ok=True)
    for folder in MADE_BY_CONTAINERD:
        with contextlib.suppress(OSError):  # others keep something there, or it is not there
            Path(folder).rmdir()
    return problems


def others():
    """Return the names of what the engine holds for others, once ours is gone."""
    containers = [
        one["Names"][0].lstrip("/") for one in engine.ask("GET", "/containers/json", all=1)
    ]
    volumes = [one["Name"] for one in engine.ask("GET", "/volumes")["Volumes"] or []]
    images = [tag for one in engine.ask("GET", "/images/json") for tag in one["RepoTags"] or []]
    return containers + volumes + [tag for tag in images if tag != "<none>:<none>"]


def remove_root(installation):
    """Remove the platform's folder; return what happened, for people."""
    root = installation.root
    if not root.exists():
        return "not there"
    if installation.marker() is None:
        return f"{root} is not ours: left alone"
    if os.path.ismount(root):
        for inner in root.iterdir():
            shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
        return "emptied; it is a mount point"
    shutil.rmtree(root)
    return "removed"


def remove_generated(installation):
    """Remove what `make` made in the checkout; what git knows stays."""
    for path in [*generated_secrets(installation), *Path("/run").glob("llm_*.lock")]:
        path.unlink()
    SYSCTL.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others have files there, or there is none
        SYSCTL.parent.rmdir()
    with contextlib.suppress(OSError):  # git knows some, or there are none
        (installation.pillar / "secrets").rmdir()
    if not installation.is_default:  # the rest is the first installation's
        return
    if configuration.LINK.is_symlink():
        configuration.LINK.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    for name in GENERATED:
        for folder in REPOSITORY.rglob(name):
            shutil.rmtree(folder, ignore_errors=True)


def generated_secrets(installation):
    """Return the files of secrets that git does not know: their keyring goes with the rest."""
    known = subprocess.run(
        ["git", "-C", str(installation.pillar), "ls-files", "secrets"],
        capture_output=True, text=True, check=False,
    ) if shutil.which("git") else None  # fmt: skip
    tracked = set(known.stdout.split()) if known and known.returncode == 0 else set()
    found = sorted((installation.pillar / "secrets").glob("*.sls"))
    return [path for path in found if f"secrets/{path.name}" not in tracked]
