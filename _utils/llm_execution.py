"""
Carrying out a plan. What is done, in which order, and what takes it back stands in the plan; here
nothing is decided.
"""

import concurrent.futures
import contextlib
import contextvars
import logging
import math
import os
import pathlib
import shutil
import time

import llm_engine
import llm_world
from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

SIDE_BY_SIDE = 6  # lanes at a time; more make the engine no faster


class Execution:
    """
    A plan's execution on ``engine``. ``wait(container, check=..., **seconds)`` returns once a
    container is healthy, ``route(service, addresses)`` sends traffic, ``drain(container, timeout,
    admin, routed)`` lets one finish, ``permit()`` is asked before each step; all raise
    ``CommandExecutionError`` when they cannot, or it must not be.
    """

    def __init__(self, engine, wait, route, drain, permit=lambda: None):
        self.engine = engine
        self.wait = wait
        self.route = route
        self.drain = drain
        self.permit = permit

    def carry_out(self, operations):
        """
        Carry out the operations of each lane one after another, lanes side by side.

        Returns ``{"changes": {container: [sentence]}, "errors": [sentence]}``.
        """
        lanes = {}
        for operation in operations:
            lanes.setdefault(operation["lane"], []).append(operation)
        changes, errors = {}, []
        pool = concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE)
        try:
            # A copy of the context for each: Salt's dunders live in it.
            runs = [
                pool.submit(contextvars.copy_context().run, self._lane, lane)
                for lane in lanes.values()
            ]
            for run in runs:
                done, error = run.result()
                errors += [error] if error else []
                for operation in done:
                    changes.setdefault(operation["container"], []).append(operation["sentence"])
        finally:
            # After Ctrl-C: what has begun comes to its end, what has not does not begin.
            pool.shutdown(cancel_futures=True)
        return {"changes": changes, "errors": errors}

    def _lane(self, operations):
        """Return those operations that were done, and what went wrong with the next."""
        done, begun = [], time.monotonic()
        for operation in operations:
            within = operation["within"]
            end = math.inf if within is None else begun + within
            try:
                if time.monotonic() >= end:
                    raise CommandExecutionError(f"not begun, for those before took {within:g} s")
                self._perform(operation, end)
            except CommandExecutionError as err:
                return done, f"{operation['container']}: {err}"
            done.append(operation)
        return done, None

    def _perform(self, operation, end):
        """
        Carry out the steps of ``operation``, waiting until ``end`` at most; take back those that
        were done when one fails.
        """
        back = []
        try:
            for step in operation["steps"]:
                self.permit()
                self._step(step, end)
                back[:0] = step["undo"]
        except CommandExecutionError as err:
            if not back:
                raise
            if failed := self._take_back(back):
                raise CommandExecutionError(f"{err}\nTaking it back failed: {failed}") from err
            old = operation.get("old")
            stands = f"{old} serves as before" if old else "nothing is left of it"
            raise CommandExecutionError(f"{err}\nIt was taken back: {stands}") from err

    def _take_back(self, steps):
        """Carry out every one of ``steps``, even when some fail; return what went wrong."""
        failed = []
        for step in steps:
            try:
                self._step(step, math.inf)
            except CommandExecutionError as err:
                failed.append(str(err))
        return "; ".join(failed)

    def _step(self, step, end):
        """Carry out one step; whatever goes wrong is told and taken back like a refusal."""
        try:
            self._act(step, end)
        except CommandExecutionError:
            raise
        except (OSError, SaltInvocationError) as err:
            raise CommandExecutionError(str(err)) from err
        except Exception as err:
            log.exception("%s of %s", step["do"], step["container"])
            raise CommandExecutionError(f"{type(err).__name__}: {err}") from err

    def _act(self, step, end):
        container = step["container"]
        match step["do"]:
            case "create":
                self._create(step)
            case "start":
                self.engine.start(container)
            case "wait":
                health, left = step["health"], max(0.0, end - time.monotonic())
                seconds = min(health["healthy_deadline"], left)
                self.wait(container, **health | {"healthy_deadline": seconds})
            case "route":
                self.route(container, self._addresses(step["to"]))
            case "drain":
                self.drain(container, step["seconds"], step["admin"], step["routed"])
            case "stop":
                self.engine.stop(container, step["seconds"])
            case "resume":
                self.engine.resume(container)
            case "update":
                self.engine.update(container, step["body"])
            case "rename":
                self.engine.rename(container, step["name"])
            case "remove":
                self._remove(step)
            case "remove volume":
                self.engine.remove_volume(container)

    def _create(self, step):
        owner = _owner(step["user"])
        for folder in step["folders"]:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if owner:
                os.chown(folder, *owner)
        labels = {key: step["body"]["Labels"][key] for key in (llm_world.SITE, llm_world.SERVICE)}
        volumes = [self.engine.create_volume(name, labels) for name in step["volumes"]]
        self.engine.create(step["container"], step["body"])
        # The engine gives a fresh volume to root, or to whom the image's folder belongs.
        for volume in volumes:
            if owner and os.stat(volume["Mountpoint"]).st_uid != owner[0]:
                os.chown(volume["Mountpoint"], *owner)

    def _addresses(self, containers):
        networks = [self.engine.inspect(name)["NetworkSettings"]["Networks"] for name in containers]
        found = [llm_world.address_of(end) for ends in networks for end in ends.values()]
        return [address for address in found if address]

    def _remove(self, step):
        with contextlib.suppress(llm_engine.NotFound):
            self.engine.remove(step["container"])
        for folder in map(pathlib.Path, step["folders"]):
            shutil.rmtree(folder, ignore_errors=True)


def _owner(user):
    """Return the numbers of ``10005:10005``; nothing for names, which only the image knows."""
    ids = (user.split(":") * 2)[:2]
    return [int(each) for each in ids] if all(each.isdigit() for each in ids) else []
