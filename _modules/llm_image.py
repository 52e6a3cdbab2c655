"""
The images of the services: named after their content, built here, nothing twice.

An image is a folder of ``salt://images`` with a Dockerfile. Its name ends in a hash of that folder,
of the images that it stands on, of the version that the catalogue wants and of the authorities
that the host trusts. Whoever wants another names it by its digest in the catalogue; such an image
is pulled and never built.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import logging
import os
import shutil
import time

import llm_builder
import llm_debootstrap
import llm_engine
import llm_mirror
import llm_recipe
from llm_size import rounded as _size
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_image"

log = logging.getLogger(__name__)

LOCK = "/run/llm_image.lock"
ROOM = 512 * 1024**2  # bytes of disk that building one image takes, at most
FULL = os.strerror(errno.ENOSPC).lower()
MORE = "make room (salt-run llm.prune)"
SOURCE = "salt://images"
LEFT_OUT = r"E@\.(in|sls)$|/overrides\.txt$"  # what lock files are made of; each costs a round trip


def __virtual__():
    return __virtualname__


def _builder():
    return llm_builder.Builder(llm_engine.socket_path(__opts__))


def _there(builder):
    """
    Return ``{reference: id}`` of our images; asked once a run, for the engine takes its time. A
    host that has no engine yet, as in test mode on a bare one, has no images.
    """
    if not os.path.exists(builder.path):
        return {}
    kept = __context__.get("llm_image.there")
    if kept is None:
        kept = __context__["llm_image.there"] = builder.ours()
    return kept


def _folders():
    """Return ``{folder: {path: content}}`` of the images, as the file server has them."""
    kept = __context__.get("llm_image.folders")
    if kept is None:
        saltenv = __opts__.get("saltenv") or "base"
        copies = __salt__["cp.cache_dir"](SOURCE, saltenv=saltenv, exclude_pat=LEFT_OUT)
        kept = {}
        for copy in copies:
            path = copy.replace(os.sep, "/").rpartition("/images/")[2]
            folder, _, path = path.partition("/")
            if path:
                with open(copy, "rb") as file:
                    kept.setdefault(folder, {})[path] = file.read()
        kept = {folder: files for folder, files in kept.items() if "Dockerfile" in files}
        __context__["llm_image.folders"] = kept
    return kept


def _recipe(folder, version=None):
    """Return the recipe of ``folder``, with those of all that it needs."""
    folders = _folders()
    if folder not in folders:
        known = ", ".join(sorted(folders)) or "none"
        raise CommandExecutionError(f'no image "{folder}" in {SOURCE}; there are {known}')
    files = dict(folders[folder])
    needed = llm_recipe.needed(files["Dockerfile"].decode(), folders.keys() - {folder})
    if not needed:
        files |= llm_mirror.certificates()
    version = _version(folder) if version is None else version
    return llm_recipe.Recipe(folder, files, version, [_recipe(each) for each in needed])


def _version(folder):
    """Return the version that the catalogue wants of the image in ``folder``."""
    services = __salt__["llm_config.platform"]()["services"].values()
    versions = {service["version"] for service in services if service["image"] == folder}
    if len(versions) > 1:
        raise CommandExecutionError(
            f"services of image {folder} want different versions: {', '.join(sorted(versions))}"
        )
    return versions.pop() if versions else ""


def reference(image, version=None):
    """
    Return the reference of an image: ``llm/<folder>:<12 hex digits of its content>``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_image.reference head

    image
        A folder of ``salt://images``, or a reference with a digest, which is returned as it is.
    version
        Of the software. Default: what the catalogue wants.

    Raises ``CommandExecutionError`` when there is no such folder.
    """
    if "@sha256:" in image:
        return image
    kept = __context__.setdefault("llm_image.references", {})
    if (image, version) not in kept:
        kept[image, version] = _recipe(image, version).reference
    return kept[image, version]


def _wanted(names):
    """Return ``{reference: recipe}`` for services, folders and references; a user's has none."""
    if not names or isinstance(names, str):
        raise SaltInvocationError("images: a list of services, folders or references is expected")
    services = __salt__["llm_config.platform"]()["services"]
    found = {}
    for name in names:
        service = services.get(name, {"image": name, "version": None})
        image = service["image"]
        recipe = None if "@sha256:" in image else _recipe(image, service["version"])
        found[recipe.reference if recipe else image] = recipe
    return found


def needed(images):
    """
    Return the references of ``images`` and of all that they stand on, sorted.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_image.needed '[head, cache]'

    images
        As `pending` takes them.
    """
    wanted = _wanted(images)
    rest, found = [recipe for recipe in wanted.values() if recipe], set(wanted)
    while rest:
        recipe = rest.pop()
        found.add(recipe.reference)
        rest += recipe.needs
        if suite := recipe.default("SUITE"):
            found.add(f"llm/debian:{suite}")
    return sorted(found)


def pending(images):
    """
    Return the references of those images that this host lacks.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_image.pending '[head, cache]'

    images
        A list of services, of folders of ``salt://images`` or of references with a digest.

    Returns ``{"build": [reference], "pull": [reference]}``, sorted. What they stand on is not
    counted.
    """
    builder = _builder()
    there = _there(builder)
    lacking = {"build": [], "pull": []}
    for name, recipe in _wanted(images).items():
        if recipe and name not in there:
            lacking["build"].append(name)
        elif not recipe and not _is_there(builder, name):
            lacking["pull"].append(name)
    return {kind: sorted(names) for kind, names in lacking.items()}


def _is_there(builder, name):
    if not os.path.exists(builder.path):
        return False
    try:
        builder.image(name)
    except llm_engine.NotFound:
        return False
    return True


def build(images):
    """
    Build those images that this host lacks, side by side, after what they stand on; pull those
    that are named by digest. Progress goes to the log.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_image.build '[head, cache]'

    images
        As `pending` takes them.

    Returns the references that were made, sorted.

    Raises ``CommandExecutionError`` with the last lines of each log when some cannot be made.
    """
    with _one_at_a_time():
        __context__.pop("llm_image.there", None)
        try:
            return _build(images)
        except CommandExecutionError as err:
            if FULL not in str(err).lower():  # the engine tells it in no other way
                raise
            raise CommandExecutionError(f"{_full()}\n{err}") from err
        finally:
            __context__.pop("llm_image.there", None)


def _full():
    """Return in words whose disk has no room, where, and what to do about it."""
    place = _builder().info()["DockerRootDir"]
    free = _size(shutil.disk_usage(place).free)
    return f"{__opts__['id']}: disk: {place} was full, and has {free} left by now; {MORE}"


@contextlib.contextmanager
def _one_at_a_time():
    """Wait until no other run on this host builds. The lock ends with its process."""
    with open(LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another run builds images on this host; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(images):
    builder, wanted, lacking = _builder(), _wanted(images), pending(images)
    for name in lacking["pull"]:
        builder.pull(name, timeout=llm_builder.SILENCE)
    there = builder.ours()
    recipes = llm_recipe.ordered([wanted[name] for name in lacking["build"]])
    recipes = [recipe for recipe in recipes if recipe.reference not in there]
    if recipes:
        builder.forget_steps()
        _check_room(builder, len(recipes))
        offered = llm_mirror.arguments()
        for recipe in recipes:
            if not recipe.needs:
                offered["ORIGIN"] = _origin(builder, recipe)
        try:
            _build_all(builder, recipes, offered)
        finally:
            builder.forget_stages()
    return sorted(lacking["pull"] + [recipe.reference for recipe in recipes])


def _check_room(builder, count):
    """Make room for ``count`` images with those that nobody needs any more."""
    place = builder.info()["DockerRootDir"]
    if shutil.disk_usage(place).free < count * ROOM:
        removed = __salt__["llm_retention.prune"]()["images"]
        log.info("the disk is full: removed %s", ", ".join(removed) or "nothing")
    free = shutil.disk_usage(place).free
    if free < count * ROOM:
        raise CommandExecutionError(
            f"{__opts__['id']}: disk: building {count} images takes up to {_size(count * ROOM)}, "
            f"and {place} has {_size(free)} left; {MORE}"
        )


def _origin(builder, recipe):
    """Return what the base image stands on: pulled, or made here where no registry answers."""
    origin, suite = recipe.default("ORIGIN"), recipe.default("SUITE")
    if not suite or _is_there(builder, origin):
        return origin
    made = f"llm/debian:{suite}"
    if made in builder.ours():
        return made
    try:
        builder.pull(origin)
    except CommandExecutionError as err:
        log.info("no registry, so Debian is made here: %s", err)
        try:
            with llm_debootstrap.archive(suite, __opts__["cachedir"]) as archive:
                builder.load(archive, made, label="debian")
        except CommandExecutionError as failure:
            raise CommandExecutionError(f"{err}; and {failure}") from failure
        return made
    return origin


def _build_all(builder, recipes, offered):
    """Build ``recipes`` side by side, each once what it needs is there."""
    begun = {}

    def build_in_turn(recipe):
        for needed in recipe.needs:
            if needed.reference in begun and begun[needed.reference].exception():
                return
        _build_one(builder, recipe, offered)

    with concurrent.futures.ThreadPoolExecutor(len(recipes)) as pool:
        try:
            for recipe in recipes:
                begun[recipe.reference] = pool.submit(build_in_turn, recipe)
            concurrent.futures.wait(begun.values())
        except BaseException:
            builder.cancel()
            raise
    failures = [
        f"image {recipe.folder} cannot be built: {err}"
        for recipe in recipes
        if (err := begun[recipe.reference].exception())
    ]
    if failures:
        raise CommandExecutionError("\n\n".join(failures))


def _build_one(builder, recipe, offered):
    start = time.monotonic()
    log.info("image %s: building %s", recipe.folder, recipe.reference)
    more = {}
    if suite := recipe.default("SUITE"):
        more["mirrors.sources"] = llm_mirror.sources(suite).encode()
        more["authorities.pem"] = llm_mirror.authorities()
    builder.build(recipe.reference, recipe.context(more), recipe.arguments(offered), recipe.folder)
    log.info("image %s: built in %.0f s", recipe.folder, time.monotonic() - start)


def list_():
    """
    Return the references of all images that this project made on this host, sorted.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_image.list
    """
    return sorted(_builder().ours())


def remove():
    """
    Remove all images that this project made on this host, and no others.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_image.remove

    Returns the references that were removed.

    Raises ``CommandExecutionError`` naming those that containers still use.
    """
    builder = _builder()
    __context__.pop("llm_image.there", None)
    builder.forget_steps(age=0)
    removed, kept = [], {}
    for name in sorted(builder.ours()):
        try:
            builder.remove_image(name)
            removed.append(name)
        except llm_engine.NotFound:
            continue
        except llm_engine.EngineError as err:
            kept[name] = err
    builder.forget_stages(everything=True)
    if kept:
        raise CommandExecutionError(
            "\n".join(f"{name} was not removed: {err}" for name, err in kept.items())
        )
    return removed


__func_alias__ = {"list_": "list"}
