"""
A thousand wrong pillars and more, each wrong by construction: none may pass, none may end in a
traceback, none may show a secret.
"""

import copy
import re
import shutil

import llm_catalogue
import llm_review
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CLOSED = [
    (),
    ("defaults",),
    ("defaults", "log"),
    ("services", "head"),
    ("services", "cache", "health"),
    ("services", "mesh"),
    ("requests",),
    ("mesh",),
    ("limits",),
    ("response_cache",),
    ("certificates",),
    ("preflight",),
    ("site",),
    ("site", "network"),
    ("site", "salt"),
    ("site", "hosts", "node1"),
    ("site", "models", "tiny"),
    ("site", "clients", "default"),
]
SIZES = [
    ("defaults", "memory"),
    ("defaults", "tmpfs", "/tmp"),
    ("defaults", "log", "max_size"),
    ("services", "head", "memory"),
    ("requests", "max_bytes"),
    ("preflight", "memory_reserve"),
    ("preflight", "disk_free"),
]
DURATIONS = [
    ("defaults", "stop_timeout"),
    ("defaults", "drain_timeout"),
    ("defaults", "healthy_deadline"),
    ("services", "head", "progress_deadline"),
    ("requests", "timeout"),
    ("requests", "backoff"),
    ("requests", "connection"),
    ("mesh", "ejection"),
    ("response_cache", "ttl"),
    ("preflight", "clock_skew"),
]
# Keys of closed mappings that must be there. The others of a service come from the defaults.
OPTIONAL = {"host", "roles", "authority", "generated"}
OWN = {"image", "slot", "port", "user", "health"}
SECRETS = [
    ("secrets", "cache", "password"),
    ("secrets", "head", "key"),
    ("secrets", "model-proxy", "key"),
    ("secrets", "clients", "default"),
]

words = st.text("abcdefghijklmnopqrstuvwxyz_-", min_size=3, max_size=12)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def at(pillar, path):
    """Return what stands at ``path``."""
    for key in path:
        pillar = pillar[key]
    return pillar


def put(pillar, path, value):
    """Put ``value`` at ``path``."""
    at(pillar, path[:-1])[path[-1]] = value


@st.composite
def unknown_key(draw, pillar):
    path = draw(st.sampled_from(CLOSED))
    key = draw(words.map(lambda word: f"zz{word}") | st.sampled_from([None, True, 7, 1.5, ""]))
    at(pillar, path)[key] = draw(junk)


@st.composite
def misspelt_key(draw, pillar):
    path = draw(st.sampled_from(CLOSED).filter(lambda path: at(pillar, path)))
    mapping = at(pillar, path)
    key = draw(st.sampled_from(sorted(set(mapping) - {"host", "roles"})))
    place = draw(st.integers(0, len(key)))
    value = mapping.pop(key)
    mapping[key[:place] + draw(st.sampled_from("qxz")) + key[place:]] = value


@st.composite
def missing_key(draw, pillar):
    paths = [
        path
        for path in CLOSED
        if path[-1:] != ("health",) and path != ("site", "clients", "default")
    ]
    path = draw(st.sampled_from(paths))
    mapping = at(pillar, path)
    there = set(mapping) & OWN if path[:1] == ("services",) else set(mapping) - OPTIONAL
    if path == ("site", "models", "tiny"):
        there = {"generated"}
    del mapping[draw(st.sampled_from(sorted(there)))]


def leaves(value, path=()):
    """Yield the path of everything that has a type of its own."""
    if path in {("host",), ("roles",)} or path[-1:] == ("json",) or path[:1] == ("secrets",):
        return
    if path:
        yield path
    for key, child in value.items() if isinstance(value, dict) else ():
        yield from leaves(child, (*path, key))
    for index, child in enumerate(value) if isinstance(value, list) else ():
        yield from leaves(child, (*path, index))


@st.composite
def wrong_type(draw, pillar):
    path = draw(st.sampled_from(list(leaves(pillar))))
    now = at(pillar, path)
    wrong = {
        dict: st.none() | st.booleans() | st.integers() | st.text() | st.lists(junk, min_size=1),
        list: st.none() | st.booleans() | st.integers() | st.text() | st.just({"a": 1}),
        str: st.none() | st.booleans() | st.lists(junk) | st.dictionaries(words, junk),
        bool: st.none() | st.integers() | st.text() | st.lists(junk) | st.dictionaries(words, junk),
        int: st.none()
        | st.booleans()
        | st.text("xyz-")
        | st.lists(junk)
        | st.dictionaries(words, junk),
        float: st.none()
        | st.booleans()
        | st.text("xyz-")
        | st.lists(junk)
        | st.dictionaries(words, junk),
    }[type(now)]
    put(pillar, path, draw(wrong))


@st.composite
def wrong_size(draw, pillar):
    number = st.integers(-10, 10**12) | st.floats()
    text = st.from_regex(r"[0-9]{1,3}( m|MB|M|mb|Gi|K|b|kk|,5m| )?", fullmatch=True) | words
    put(
        pillar,
        draw(st.sampled_from(SIZES)),
        draw(number | text | st.sampled_from(["", "0m", "-1m"])),
    )


@st.composite
def wrong_duration(draw, pillar):
    text = st.from_regex(r"[0-9]{1,3}( s|sec|S|d|min|,5s| |h5m)", fullmatch=True) | words
    wrong = st.floats(max_value=-0.001) | text | st.sampled_from(["", "-1s", "inf", float("nan")])
    put(pillar, draw(st.sampled_from(DURATIONS)), draw(wrong))


@st.composite
def wrong_number(draw, pillar):
    path, wrong = draw(
        st.sampled_from(
            [
                (("services", "head", "port"), st.integers(max_value=0) | st.integers(65536)),
                (("services", "head", "slot"), st.integers(max_value=0) | st.integers(256)),
                (("services", "head", "user"), st.integers(max_value=0) | st.integers(65534)),
                (("defaults", "replicas"), st.integers(max_value=0) | st.integers(8)),
                (("defaults", "cpus"), st.floats(max_value=0) | st.just(float("nan"))),
                (("defaults", "pids"), st.integers(max_value=7)),
                (("defaults", "gpus"), st.integers(max_value=-1) | st.text("abc")),
                (("site", "public_port"), st.integers(max_value=0) | st.integers(65536)),
                (("site", "hosts_port"), st.sampled_from([4505, 4506, 8443, 9901])),
                (("requests", "retries"), st.integers(max_value=-1) | st.integers(11)),
                (("limits", "requests"), st.integers(max_value=0)),
                (("certificates", "renew_days"), st.integers(90) | st.integers(max_value=0)),
                (("preflight", "cpu_overcommit"), st.floats(max_value=0)),
            ]
        )
    )
    put(pillar, path, draw(wrong))


@st.composite
def unknown_name(draw, pillar):
    name = f"zz{draw(words)}"
    path = draw(
        st.sampled_from(
            [
                ("services", "head", "needs", 0),
                ("site", "hosts", "node1", "roles", 2),
                ("site", "authority"),
                ("services", "cache", "health", "redis"),
                ("services", "cache", "strategy"),
                ("services", "mesh", "network"),
                ("log_level",),
                ("limits", "unit"),
            ]
        )
    )
    put(pillar, path, name)


@st.composite
def taken(draw, pillar):
    one, other = draw(st.permutations(sorted(pillar["services"])))[:2]
    key = draw(st.sampled_from(["port", "slot", "user"]))
    pillar["services"][one][key] = pillar["services"][other][key]


@st.composite
def cycle(draw, pillar):
    names = draw(st.permutations(["cache", "model-proxy", "head", "rate-limiter", "tail"]))
    ring = names[: draw(st.integers(1, 5))]
    for name, needed in zip(ring, ring[1:] + ring[:1], strict=True):
        needs = pillar["services"][name].setdefault("needs", [])
        pillar["services"][name]["needs"] = sorted({*needs, needed})


@st.composite
def bad_name(draw, pillar):
    name = draw(st.from_regex(r"[A-Z_.][a-z]{0,3}|[a-z]|[a-z ]+[ /:]|[a-z]{64}|", fullmatch=True))
    path = draw(
        st.sampled_from([("services",), ("site", "clients"), ("services", "cache", "volumes")])
    )
    mapping = at(pillar, path)
    mapping[name] = mapping.pop(next(iter(mapping)))


@st.composite
def bad_secret(draw, pillar):
    encrypted = "-----BEGIN PGP MESSAGE-----\n\nhF4DpxvABWin4T4SAQdA\n-----END PGP MESSAGE-----\n"
    value = st.sampled_from(
        [None, "", " ", "x\n", "x\r\n", " x", "CHANGEME", "changeme!", "<key>", "a\nb", encrypted]
        + [encrypted.replace("BEGIN PGP", "BEGN"), llm_catalogue.MASK, {"a": "b"}, ["a"], 1, True]
    )
    path = draw(st.sampled_from(SECRETS))
    cut = draw(st.integers(1, len(path)))
    if cut == len(path):
        put(pillar, path, draw(value))
    else:
        put(pillar, path[:cut], draw(st.none() | st.text(max_size=5) | st.lists(junk)))


MUTATIONS = (
    unknown_key,
    misspelt_key,
    missing_key,
    wrong_type,
    wrong_size,
    wrong_duration,
    wrong_number,
    unknown_name,
    taken,
    cycle,
    bad_name,
    bad_secret,
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_problems_of_a_wrong_pillar(compile_pillar, mutation, data):
    environment = data.draw(st.sampled_from(["dev", "staging", "production"]))
    pillar = compile_pillar(environment)
    if pillar["services"]["head"].get("replicas", 1) == 1:
        pillar["defaults"]["replicas"] = 1
    before = copy.deepcopy(pillar)
    data.draw(mutation(pillar))
    found = llm_catalogue.problems(pillar, host="node1")
    assert found, f"passes: {changed(before, pillar)}"
    for problem in found:
        text = problem.text()
        assert re.match(r"pillar/[\w/-]+\.(sls|yaml): ", text), text
        assert "\n" not in text
        assert "canary-" not in text


def changed(before, after, path=()):
    """Return the first place where two pillars differ."""
    if type(before) is not type(after) or not isinstance(before, dict):
        return None if before == after else (path, before, after)
    for key in [*before, *after]:
        if key not in before or key not in after:
            return (*path, key)
        if place := changed(before[key], after[key], (*path, key)):
            return place
    return None


@pytest.mark.parametrize("value", [None, [], {}, "text", 7, True, {"llm": {}}, {"services": {}}])
def test_problems_of_no_pillar_at_all(value):
    assert llm_catalogue.problems(value, host="node1")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(junk)
def test_problems_of_junk(value):
    assert llm_catalogue.problems(value, host="node1")


TRAPS = [
    "1_234_567{}", "12:34:56", "0{}", "!{}", "*{}", "{} {{{{ x", "{}: : [", '"{}', "&{} {}",
    "{{{{ x {} }}}}", "{{% {} %}}", "[{}", "[{}]", "{{{}: {}}}", "|\n{}", "{}\n\t{}",
    "!!int {}", "!!binary {}", "{}\x00", "%{}", "@{}", "`{}", "{}\n      password: {}",
]  # fmt: skip


@pytest.mark.parametrize("renderer", ["#!yaml|gpg", "#!jinja|yaml|gpg", ""])
@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data())
def test_problems_of_a_wrong_file_of_secrets(pillar_root, keyring, renderer, data):
    secret = data.draw(st.sampled_from(["9173046", "S3cretCanary"]))
    value = data.draw(st.sampled_from(TRAPS)).format(secret, secret)
    if value == "12:34:56":
        secret = value
    path = pillar_root / "secrets" / "cache.sls"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{renderer}\nllm:\n  secrets:\n    cache:\n      password: {value}\n")
    try:
        found = llm_review.problems(pillar_root, keyring=keyring)
    finally:
        path.unlink()
    assert any(line.startswith("pillar/secrets/cache.sls") for line in found), value
    assert secret not in "\n".join(found)
    assert secret.replace(":", "") not in "\n".join(found)


@pytest.fixture(scope="module")
def pillar_root(repository, tmp_path_factory):
    """A copy of the pillar, which each example writes anew."""
    root = tmp_path_factory.mktemp("mutations") / "pillar"
    ignore = shutil.ignore_patterns("secrets")
    return shutil.copytree(repository / "pillar", root, ignore=ignore)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_problems_of_a_wrong_file(repository, pillar_root, data):
    file = data.draw(st.sampled_from(["site.yaml", "services.sls", "environments/dev.sls"]))
    lines = (repository / "pillar" / file).read_text().splitlines(keepends=True)
    key = re.compile(r" *(?!tiny|default|LITELLM)[\w-]+:(?! *#| *$)")
    keys = [index for index, line in enumerate(lines) if key.match(line)]
    index = data.draw(st.sampled_from(keys))
    line = lines[index]
    lines[index] = data.draw(
        st.sampled_from(
            [
                line + line,  # a key twice
                "\t" + line,
                line.replace(":", "", 1),
                line.replace("\n", "\r\n"),
                line.replace(":", ": [", 1).replace("]", ""),
                line.replace(":", ": 'x", 1).replace("'", '"', 2),
                line.replace(":", ": \udcff", 1),
                line.replace(":", ": \x00", 1),
                line.replace(":", ": {{ x", 1),
                re.sub(r"^( *)", r"\1on: 1\n\1", line),
                re.sub(r"^( *)[\w-]+:", r"\1 zz:", line),
            ]
        )
    )
    spoiled = pillar_root / file
    spoiled.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    try:
        found = llm_review.problems(pillar_root)
    finally:
        shutil.copy(repository / "pillar" / file, spoiled)
    assert found, lines[index]
    assert all(re.match(r"pillar/[\w/-]+\.(sls|yaml)(:\d+)?: .", line) for line in found), found
