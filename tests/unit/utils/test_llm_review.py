"""
What people write wrongly into ``pillar/``, and what must be said of it.
"""

import re
import shutil

import llm_review
import llm_source
import pytest


@pytest.fixture
def spoil(pillar_root):
    """A function that replaces a text of one file, which must be there, by another."""

    def spoil_(file, before, after):
        path = pillar_root / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return spoil_


def test_problems_finds_none_in_the_platform_as_it_is(pillar_root):
    assert llm_review.problems(pillar_root) == []


@pytest.mark.parametrize("environment", ["dev", "staging", "production"])
def test_problems_finds_none_in_any_environment(pillar_root, spoil, environment):
    spoil("site.yaml", "environment: dev", f"environment: {environment}")
    assert llm_review.problems(pillar_root) == []


SERVICES = "services.sls"
SITE = "site.yaml"
HEAD = "    head:\n      image: head"
CACHE = "    cache:\n      image: cache"
ROLES = "roles: [cache, model-proxy, head, rate-limiter, tail]"
TINY = "  tiny: {generated: true}"
HOSTED = TINY + '\n  x: {provider: openai, model: x, secret: providers.x, api_base: "URL"}'

# name: file, what stands there, what someone writes, the line that must come out of it.
MISTAKES = {
    "a version that YAML reads as a number": (
        SERVICES,
        'version: "8.1"',
        "version: 1.10",
        r"pillar/services.sls:\d+: services.cache.version: found 1.1; expected a string; "
        r'write "1.10" in quotes \(YAML read 1.1\)',
    ),
    "a port that YAML reads in base 60": (
        SERVICES,
        "port: 6379",
        "port: 22:22",
        r'services.cache.port: YAML reads 22:22 as another number; write "22:22" in quotes',
    ),
    "a port in quotes": (SERVICES, "port: 6379", 'port: "6379"', "write it without quotes"),
    "a number with a leading zero": (
        SERVICES,
        "pids: 256",
        "pids: 0256",
        "defaults.pids: YAML reads",
    ),
    "a number with an underscore": (
        SERVICES,
        "pids: 256",
        "pids: 1_000",
        "defaults.pids: YAML reads",
    ),
    "a misspelt key": (
        SERVICES,
        HEAD,
        HEAD + "\n      stratgy: stop-first",
        r'services.head.stratgy: unknown key "stratgy"; did you mean "strategy"\?',
    ),
    "a misspelt key of the defaults": (
        SERVICES,
        "    memory: 256m",
        "    memry: 256m",
        r'defaults.memry: unknown key "memry"; did you mean "memory"\?',
    ),
    "a key of another program": (
        SERVICES,
        HEAD,
        HEAD + "\n      restart_policy: unless_stopped",
        'services.head.restart_policy: unknown key "restart_policy"; there are capabilities,',
    ),
    "an unknown choice": (
        SERVICES,
        "strategy: start-first",
        "strategy: start_first",
        r'defaults.strategy: found "start_first"; expected one of start-first, stop-first; '
        r'did you mean "start-first"\?',
    ),
    "a name that is a canary's": (
        SERVICES,
        CACHE,
        CACHE.replace("cache:", "cache-canary:"),
        "services.cache-canary: found this name; expected no name that ends in -canary",
    ),
    "a service's name of one letter": (
        SERVICES,
        CACHE,
        CACHE.replace("cache:", "x:"),
        "2 to 63 of a-z",
    ),
    "a service's name with a capital": (
        SERVICES,
        CACHE,
        CACHE.replace("cache:", "Cache:"),
        "2 to 63",
    ),
    "a relative path of a volume": (
        SERVICES,
        "{cache-data: /data}",
        "{cache-data: ./data}",
        'volumes.cache-data: found "./data"; expected an absolute path such as /data',
    ),
    "a path that climbs": (
        SERVICES,
        "{cache-data: /data}",
        "{cache-data: /a/../b}",
        "an absolute path",
    ),
    "a key that YAML reads as a boolean": (
        SERVICES,
        "  log_level: info",
        "  on: info",
        r'on: found a key that YAML does not read as a string; write "on" in quotes',
    ),
    "a tab": (
        SERVICES,
        "      port: 6379",
        "\t\tport: 6379",
        r"services.sls:\d+: found a tab in the ind",
    ),
    "a bad indentation": (
        SERVICES,
        "      port: 6379",
        "     port: 6379",
        r"services.sls:\d+: column \d+:",
    ),
    "a key twice": (
        SERVICES,
        "      port: 6379",
        "      port: 6379\n      port: 6380",
        r"services.sls:\d+: services.cache.port: is there twice, first in line \d+",
    ),
    "an unclosed bracket": (SITE, ROLES, ROLES[:-1], r"pillar/site.yaml:\d+: column \d+: "),
    "an unclosed brace of Jinja": (
        SERVICES,
        "  log_level: info",
        "  log_level: {{ info }",
        r"services.sls:\d+: Jinja: ",
    ),
    "a file that top.sls names and nobody wrote": (
        "top.sls",
        "    - services\n",
        "    - services\n    - monitoring\n",
        r'pillar/top.sls:6: no such file "monitoring"',
    ),
    "an unknown environment": (
        SITE,
        "environment: dev",
        "environment: prod",
        r'site.yaml:\d+: environment: unknown environment "prod"; did you mean "production"\?',
    ),
    "an unknown role": (
        SITE,
        "roles: [cache,",
        "roles: [cach,",
        r'site.yaml:\d+: hosts.node1.roles\[0\]: unknown service "cach"; did you mean "cache"\?',
    ),
    "a role twice": (
        SITE,
        "roles: [cache,",
        "roles: [cache, cache,",
        "expected each name once; twice: cache",
    ),
    "a role of what runs everywhere": (
        SITE,
        "roles: [cache,",
        "roles: [mesh, cache,",
        "runs on every host",
    ),
    "a service that no host carries": (
        SITE,
        ", tail]",
        "]",
        r"services.sls:\d+: services.tail: no host of site.yaml carries it",
    ),
    "one port for two services": (
        SERVICES,
        "port: 6379",
        "port: 4000",
        "services.head.port: port 4000 is cache's already",
    ),
    "one slot for two services": (
        SERVICES,
        "slot: 3",
        "slot: 5",
        "head.slot: slot 5 is cache's already",
    ),
    "one user for two services": (
        SERVICES,
        "user: 10003",
        "user: 10005",
        "user 10005 is cache's already",
    ),
    "the user root": (
        SERVICES,
        "user: 10003",
        "user: 0",
        "cache.user: found 0; expected at least 1",
    ),
    "a port that no host has": (
        SERVICES,
        "port: 6379",
        "port: 70000",
        "services.cache.port: found 70000; expected at most 65535",
    ),
    "Salt's port for the platform": (
        SITE,
        "public_port: 8443",
        "public_port: 4505",
        r"public_port: port 4505 is publish_port already",
    ),
    "one port for the public and for hosts": (
        SITE,
        "hosts_port: 15443",
        "hosts_port: 8443",
        "hosts_port: port 8443",
    ),
    "a subnet with host bits": (
        SITE,
        "172.30.0.0/20",
        "172.30.0.1/20",
        'network.subnet: found "172.30.0.1/20"; .*; write 172.30.0.0/20',
    ),
    "a subnet too small": (
        SITE,
        "172.30.0.0/20",
        "172.30.0.0/26",
        "room for every slot: /25 or larger",
    ),
    "a host inside the subnet": (
        SITE,
        "address: 127.0.0.1",
        "address: 172.30.1.1",
        r"hosts.node1.address: 172.30.1.1 is inside network.subnet \(172.30.0.0/20\)",
    ),
    "an address that is none": (
        SITE,
        "127.0.0.1",
        "127.0.0.256",
        "expected an IPv4 address such as 10.0.0.5",
    ),
    "a loopback address for one of two hosts": (
        SITE,
        "hosts:  ",
        "hosts:\n  node2: {address: 10.0.0.2, roles: []}  ",
        "node1.address: found 127.0.0.1; expected an address that the other hosts reach",
    ),
    "an authority that is no host": (
        SITE,
        "authority: node1",
        "authority: node7",
        'unknown host "node7"',
    ),
    "an image without a digest": (
        SERVICES,
        "image: cache",
        "image: valkey/valkey:8.1",
        "cache.image: found .*; expected a folder of salt/images, or an image by its digest",
    ),
    "a cycle": (
        SERVICES,
        CACHE,
        CACHE + "\n      needs: [head]",
        "needs: cache → head → cache; expected no cycle",
    ),
    "an unknown need": (
        SERVICES,
        "needs: [model-proxy, cache]",
        "needs: [model-proxi, cache]",
        r'head.needs\[0\]: unknown service "model-proxi"; did you mean "model-proxy"\?',
    ),
    "no replica": (
        SERVICES,
        "replicas: 1 ",
        "replicas: 0 ",
        "replicas: found 0; expected at least 1",
    ),
    "fewer than no replicas": (
        SERVICES,
        "replicas: 1 ",
        "replicas: -1 ",
        "found -1; expected at least 1",
    ),
    "replicas in quotes": (
        SERVICES,
        "replicas: 1 ",
        'replicas: "3" ',
        "expected a whole number; write it",
    ),
    "half a replica": (
        SERVICES,
        "replicas: 1 ",
        "replicas: 1.5 ",
        "found 1.5; expected a whole number",
    ),
    "two replicas on one volume": (
        SERVICES,
        CACHE,
        CACHE + "\n      replicas: 2",
        "cache.replicas: found 2; expected 1",
    ),
    "start-first on a volume": (
        SERVICES,
        "strategy: stop-first",
        "strategy: start-first",
        "cache.strategy: found",
    ),
    "memory without a unit": (
        SERVICES,
        "memory: 256m",
        "memory: 512",
        "defaults.memory: found 512; expected a size such as 512m or 2g; write 512m",
    ),
    "memory in other people's units": (
        SERVICES,
        "memory: 256m",
        'memory: "512MB "',
        "; write 512m",
    ),
    "hardly any memory": (
        SERVICES,
        "memory: 256m",
        "memory: 4m",
        'found "4m"; expected at least 16m',
    ),
    "no CPU": (SERVICES, "cpus: 0.25", "cpus: 0", "defaults.cpus: found 0; expected at least 0.01"),
    "a duration with a blank": (
        SERVICES,
        "min_healthy: 2s",
        "min_healthy: 2 s",
        "a duration such as 5s",
    ),
    "a negative duration": (
        SERVICES,
        "min_healthy: 2s",
        "min_healthy: -1",
        "a duration such as 5s",
    ),
    "a deadline before it can be met": (
        SERVICES,
        "healthy_deadline: 60s",
        "healthy_deadline: 1s",
        "healthy_deadline: found .*; expected more than min_healthy",
    ),
    "more kept than there are addresses": (
        SERVICES,
        "replicas: 1 ",
        "replicas: 6 ",
        "keep: found 2; expected at most 1 with 6 replicas",
    ),
    "a progress deadline before the other": (
        SERVICES,
        "progress_deadline: 180s",
        "progress_deadline: 30s",
        r"progress_deadline: found .*; expected more than healthy_deadline \(60s\)",
    ),
    "no health check": (
        SERVICES,
        "{http: /health/readiness}",
        "{}",
        "head.health: found no check; expected one of",
    ),
    "two health checks": (
        SERVICES,
        "{http: /health/readiness}",
        "{http: /health, tcp: true}",
        "head.health: found http and tcp",
    ),
    "a health check with an unknown secret": (
        SERVICES,
        "{redis: cache.password}",
        "{redis: cache.pasword}",
        r'health.redis: found "cache.pasword"; .*; did you mean "cache.password"\?',
    ),
    "a smoke test with an unknown secret": (
        SERVICES,
        "smoke_test: head.key",
        "smoke_test: head.kez",
        'head.smoke_test: found "head.kez"; .*; did you mean "head.key"',
    ),
    "a smoke test with more than one secret": (
        SERVICES,
        "smoke_test: head.key",
        "smoke_test: providers",
        'head.smoke_test: found "providers"; expected one of the service\'s secrets',
    ),
    "a smoke test of what is not asked by HTTP": (
        SERVICES,
        "health: {redis: cache.password}",
        "health: {redis: cache.password}\n      smoke_test: cache.password",
        "cache.smoke_test: does not go with protocol tcp; expected protocol http",
    ),
    "certificates that are renewed too late": (
        "environments/dev.sls",
        "{days: 30, renew_days: 10}",
        "{days: 30, renew_days: 30}",
        r"dev.sls:\d+: certificates.renew_days: found 30; expected less than days \(30\)",
    ),
    "half a certificate of one's own": (
        SITE,
        "public_certificate: {}",
        "public_certificate: {certificate: /c.pem}",
        r"site.yaml:\d+: public_certificate.key: is missing",
    ),
    "an authority of one's own without a certificate": (
        SITE,
        "public_certificate: {}",
        "public_certificate: {authority: /c.pem}",
        r"site.yaml:\d+: public_certificate.certificate: is missing",
    ),
    "a name that no certificate can carry": (
        SITE,
        "llm.internal",
        "llm_internal",
        "expected a host name",
    ),
    "a URL with a blank at its end": (
        SITE,
        TINY,
        '  tiny: {url: "https://host/x.gguf ", sha256: "' + "0" * 64 + '"}',
        "models.tiny.url: found a string .not shown.; expected a URL such as",
    ),
    "a URL with a key in it": (
        SITE,
        TINY,
        '  tiny: {url: "https://me:hidden@host/x.gguf", sha256: "' + "0" * 64 + '"}',
        "models.tiny.url: found .*; expected a URL without a password or key in it",
    ),
    "a key sent in clear over the internet": (
        SITE,
        TINY,
        HOSTED.replace("URL", "http://api.example.com:8080/v1"),
        "models.x.api_base: found http://; expected https://, or a private network's server",
    ),
    "a key sent in clear to a public address": (
        SITE,
        TINY,
        HOSTED.replace("URL", "http://9.9.9.9/v1"),
        "models.x.api_base: found http://; expected https://",
    ),
    "a URL without its sum": (
        SITE,
        TINY,
        "  tiny: {url: https://host/x.gguf}",
        "tiny.sha256: is missing",
    ),
    "a sum that is too short": (
        SITE,
        TINY,
        "  tiny: {url: https://host/x.gguf, sha256: 0a}",
        "expected 64 hex digits",
    ),
    "a model from two places": (
        SITE,
        TINY,
        "  tiny: {generated: true, provider: openai, model: x}",
        "models.tiny: found generated and provider; expected one of generated, url",
    ),
    "a model's name that climbs": (
        SITE,
        TINY,
        "  a/../../../etc/x: {generated: true}",
        'models.a/../../../etc/x: found "a/../../../etc/x"; expected a name such as .*org/qwen',
    ),
    "a model's name that ends in a slash": (
        SITE,
        TINY,
        "  org/: {generated: true}",
        'models.org/: found "org/"; expected a name such as',
    ),
    "a generated model for an image of one's own": (
        SERVICES,
        "image: model-proxy",
        "image: vllm/vllm-openai@sha256:" + "0" * 64,
        "site.yaml:.*models.tiny: found generated, and model-proxy has an image of your own; "
        "expected a url or path; generated models are part of the platform's own model-proxy",
    ),
    "a key where its name is due": (
        SITE,
        TINY,
        "  tiny: {provider: openai, model: x, secret: hidden-sk-1234}",
        "models.tiny.secret: found a string .not shown.; expected providers.<name>",
    ),
    "a fallback to nothing": (
        SITE,
        TINY,
        "  tiny: {generated: true, fallbacks: [tinny]}",
        r'fallbacks\[0\]: unknown model "tinny"; did you mean "tiny"\?',
    ),
    "a client's limit in words": (
        SITE,
        "default: {}",
        "default: {requests: many}",
        "expected a whole number",
    ),
    "a client without a mapping": (
        SITE,
        "default: {}",
        "default: hidden",
        "clients.default: found ",
    ),
    "a mapping without anything": (
        SITE,
        "default: {}",
        "default:",
        "clients.default: found nothing; expected a map",
    ),
    "a list where a mapping is due": (
        SERVICES,
        "environment: {} ",
        "environment: [A=1] ",
        r"defaults.environment: found a list; expected a mapping \(key: value\)",
    ),
    "a string where a list is due": (
        SERVICES,
        "needs: [cache]",
        "needs: cache",
        r"expected a list \(\[one, two\]\)",
    ),
    "a secret in the environment": (
        SERVICES,
        "environment: {} ",
        "environment: {API_KEY: hidden} ",
        "environment.API_KEY: looks like a secret; expected nothing secret in environment",
    ),
    "a capability with a typo": (
        SERVICES,
        "capabilities: []",
        "capabilities: [NET_BIND]",
        r'capabilities\[0\]: found "NET_BIND"; expected a Linux capability .*NET_BIND_SERVICE',
    ),
    "a device elsewhere": (
        SERVICES,
        "devices: []",
        "devices: [dri]",
        "expected a device such as /dev/dri",
    ),
    "GPUs in words": (SERVICES, "gpus: 0", "gpus: two", "expected a number of GPUs, or all"),
    "an unknown log level": (
        SERVICES,
        "log_level: info",
        "log_level: warn",
        'log_level: found "warn"',
    ),
    "a first pause longer than the longest": (
        SERVICES,
        "backoff: 100ms",
        "backoff: 3s",
        r"backoff: found .*; expected at most max_backoff \(2s\)",
    ),
    "an ingress left before its clients connect anew": (
        SERVICES,
        "network: host",
        "network: host\n      drain_timeout: 19s",
        r"ingress.drain_timeout: found .*; expected at least twice requests.connection \(10s\)",
    ),
    "a tail left while clients are connected to it": (
        SERVICES,
        "port: 8443",
        "port: 8443\n      drain_timeout: 15s",
        r"tail.drain_timeout: found .*; expected at least 6s more than requests.connection \(10s\)",
    ),
    "a share above all": (SERVICES, "retry_budget: 50", "retry_budget: 101", "at most 100"),
    "a try longer than the whole": (
        SERVICES,
        "per_try_timeout: 120s",
        "per_try_timeout: 400s",
        r"per_try_timeout: found .*; expected at most timeout \(300s\)",
    ),
    "a missing key of the site": (
        SITE,
        "public_port: 8443",
        "",
        r"pillar/site.yaml: public_port: is missing",
    ),
    "a missing section": (
        SERVICES,
        "  log_level: info",
        "",
        r"pillar/services.sls:\d+: log_level: is missing",
    ),
    "an unknown section": (
        SERVICES,
        "  log_level: info",
        "  loglevel: info",
        'unknown key "loglevel"; did you mean',
    ),
}
# What the environment may say of a variable, and how YAML takes it.
for _value in ("yes", "off", "1.10", "null", "12", "010", "1_000"):
    MISTAKES[f"a variable that is {_value}"] = (
        SERVICES,
        "environment: {} ",
        f"environment: {{DEBUG: {_value}}} ",
        r"services.sls:\d+: defaults.environment.DEBUG: found .*; expected a string",
    )


for _name in ("api_key", "key", "access_token", "X-Amz-Signature", "sig", "Client_Secret"):
    MISTAKES[f"a URL with {_name} in it"] = (
        SITE,
        TINY,
        HOSTED.replace("URL", f"https://host/v1?a=b&{_name}=hidden"),
        "models.x.api_base: found .*; expected a URL without a password or key in it",
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_problems_says_what_is_wrong(pillar_root, spoil, mistake):
    file, before, after, expected = MISTAKES[mistake]
    if file == SERVICES and mistake == "an unknown log level":
        spoil("environments/dev.sls", "  log_level: info\n", "")
    if mistake.endswith("section"):
        spoil("environments/dev.sls", "  log_level: info\n", "")
    spoil(file, before, after)
    found = llm_review.problems(pillar_root)
    assert any(re.search(expected, line) for line in found), found
    assert all(line.startswith("pillar/") for line in found)
    assert "hidden" not in "\n".join(found)


def test_problems_takes_a_variable_that_looks_like_a_date_as_it_is_written(pillar_root, spoil):
    spoil(SERVICES, "environment: {} ", "environment: {DAY: 2026-01-01} ")
    assert llm_review.problems(pillar_root) == []
    pillar, _ = llm_review.merged(llm_source.read(pillar_root))
    assert pillar["defaults"]["environment"] == {"DAY": "2026-01-01"}


@pytest.mark.parametrize("value", ["1_000", "010", "12:34:56", "1.10"])
def test_problems_shows_no_value_of_a_variable(pillar_root, spoil, value):
    spoil(SERVICES, "environment: {} ", f"environment: {{PIN: {value}}} ")
    found = llm_review.problems(pillar_root)
    assert found
    assert not any(value in line for line in found), found


@pytest.mark.parametrize("name", ["org/qwen-2.5:7b", "q", "q2_K"])
def test_problems_finds_none_in_the_name_of_a_model(pillar_root, spoil, name):
    spoil(SITE, TINY, f'  "{name}": {{generated: true}}')
    assert llm_review.problems(pillar_root) == []


def test_problems_lists_the_mistakes_of_all_files_at_once(pillar_root, spoil):
    spoil(SERVICES, "port: 6379", "port: 70000")
    spoil("environments/dev.sls", "cpus: 1.5", "cpus: many")
    spoil(SITE, "roles: [cache,", "roles: [cach,")
    spoil("top.sls", "    - services\n", "    - services\n    - monitoring\n")
    assert [line.split(":")[0] for line in llm_review.problems(pillar_root)] == [
        "pillar/environments/dev.sls",
        "pillar/services.sls",
        "pillar/site.yaml",
        "pillar/top.sls",
    ]


def test_problems_of_one_file_do_not_hide_those_of_another(pillar_root, spoil):
    spoil(SERVICES, "      port: 6379", "\t\tport: 6379")
    spoil(SITE, "public_port: 8443", "public_port: 84430")
    found = llm_review.problems(pillar_root)
    assert len(found) == 2
    assert "a tab in the indentation" in found[0]
    assert "public_port: found 84430" in found[1]


@pytest.mark.parametrize(
    ("spoiled", "expected"),
    [
        (lambda raw: b"\xef\xbb\xbf" + raw, "site.yaml:1: found a byte order mark; expected UTF-8"),
        (lambda raw: raw.replace(b"\n", b"\r\n"), "site.yaml:1: found CR LF at the end of a line"),
        (
            lambda raw: raw.replace(b"tiny", b"t\xefny"),
            r"site.yaml:\d+: found a byte that is not UTF-8",
        ),
        (lambda raw: raw.decode().encode("utf-16"), "site.yaml:1: found a byte that is not UTF-8"),
        (lambda raw: raw + b"\0", r"site.yaml.*: cannot be read as YAML"),
        (lambda raw: b"", "site.yaml: .*is missing"),
        (lambda raw: b"- a\n- b\n", "site.yaml:1: found no mapping; expected key: value"),
    ],
    ids=("bom", "crlf", "latin-1", "utf-16", "nul", "empty", "list"),
)
def test_problems_of_encoding(pillar_root, spoiled, expected):
    file = pillar_root / "site.yaml"
    file.write_bytes(spoiled(file.read_bytes()))
    found = llm_review.problems(pillar_root)
    assert any(re.search(expected, line) for line in found), found


@pytest.mark.parametrize("file", ["site.yaml", "services.sls", "top.sls", "environments/dev.sls"])
def test_problems_of_a_missing_file(pillar_root, file):
    (pillar_root / file).unlink()
    assert llm_review.problems(pillar_root) != []


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "http://10.110.0.1:8080/v1",
        "http://127.0.0.1/v1",
        "http://[::1]:8080/v1",
        "http://localhost:8080/v1",
        "http://gpu-host/v1?version=1.2",
        "https://api.example.com/v1?max_tokens=5",
    ],
)
def test_problems_finds_none_in_a_provider_that_nobody_overhears(pillar_root, spoil, url):
    spoil(SITE, TINY, HOSTED.replace("URL", url))
    assert llm_review.problems(pillar_root) == []


def test_problems_finds_none_in_a_provider_without_a_key_over_http(pillar_root, spoil):
    model = HOSTED.replace("secret: providers.x, ", "")
    spoil(SITE, TINY, model.replace("URL", "http://example.com/v1"))
    assert llm_review.problems(pillar_root) == []


@pytest.mark.parametrize(
    ("accepted", "pending", "expected"),
    [
        (["other"], {"node1": "ab:cd"}, "(pending: yes, fingerprint ab:cd)"),
        (["other"], {}, "(pending: no)"),
        (["Node1"], {}, '(pending: no); did you mean "Node1"?'),
        (["other", "node1.example.com"], {}, '(pending: no); did you mean "node1.example.com"?'),
        (["other"], {"NODE1": "ab:cd"}, '(pending: no); did you mean "NODE1"?'),
    ],
)
def test_problems_of_a_key_that_the_master_has_not_accepted(
    pillar_root, accepted, pending, expected
):
    keys = {"accepted": accepted, "pending": pending}
    (found,) = llm_review.problems(pillar_root, keys=keys)
    assert re.search(r"site.yaml:\d+: hosts.node1: no accepted key ", found)
    assert found.endswith(expected)


def test_problems_finds_none_in_accepted_keys(pillar_root):
    keys = {"accepted": ["node1"], "pending": {}}
    assert llm_review.problems(pillar_root, keys=keys) == []


def test_problems_takes_the_key_of_another_host_for_no_other_spelling(pillar_root, spoil):
    spoil(SITE, "hosts:  ", "hosts:\n  node2: {address: 10.0.0.2, roles: []}  ")
    spoil(SITE, "address: 127.0.0.1", "address: 10.0.0.1")
    keys = {"accepted": ["node1"], "pending": {}}
    (found,) = llm_review.problems(pillar_root, keys=keys)
    assert found.endswith("hosts.node2: no accepted key (pending: no)")


@pytest.fixture
def salt_root(repository, tmp_path):
    """A copy of the tree that minions read."""
    for name in ("_modules", "_states", "_utils", "orch"):
        (tmp_path / name).mkdir()
    return shutil.copytree(repository / "salt", tmp_path / "salt", symlinks=True)


def test_problems_finds_none_in_the_tree_as_it_is(pillar_root, salt_root):
    assert llm_review.problems(pillar_root, salt_root=salt_root) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_problems_of_a_link_that_became_something_else(pillar_root, salt_root, kind):
    path = salt_root / "orch"
    path.unlink()
    path.mkdir() if kind == "folder" else path.write_text("../orch")
    (found,) = llm_review.problems(pillar_root, salt_root=salt_root)
    assert found == (
        f"salt/orch: found a {kind}; expected a link to ../orch; "
        "clone again with links (git config core.symlinks true)"
    )


@pytest.mark.parametrize("target", ["../pillar", "/etc", "../pillar/site.yaml", "nowhere"])
def test_problems_of_a_link_that_ends_elsewhere(pillar_root, salt_root, target):
    (salt_root / "head" / "data").symlink_to(target)
    found = llm_review.problems(pillar_root, salt_root=salt_root)
    assert len(found) == 1
    assert found[0].startswith(f"salt/head/data: found a link to {target}; expected")


def test_problems_of_an_image_that_the_tree_does_not_hold(pillar_root, salt_root, spoil):
    spoil(SERVICES, "image: cache", "image: cahce")
    found = llm_review.problems(pillar_root, salt_root=salt_root)
    assert len(found) == 1
    assert re.search(r'services.cache.image: unknown image "cahce"; did you mean "cache"', found[0])


def test_problems_of_a_template_that_the_tree_does_not_hold(pillar_root, salt_root, spoil):
    spoil(SERVICES, "files: [valkey.conf]", "files: [valky.conf]")
    found = llm_review.problems(pillar_root, salt_root=salt_root)
    assert len(found) == 1
    assert (
        "cache.files[0]: no such template; expected salt/cache/files/valky.conf.jinja" in found[0]
    )
