"""
Gates: what must be well before anything else may go on. They change nothing.

``http``, ``tcp``, ``redis``, ``grpc`` and ``container`` say everything themselves and serve any
SLS; ``healthy`` asks what the catalogue says of a service. Each has three arguments in common:

container
    Name of the container that answers: a restart starts the time anew, one that has been up for
    longer needs to answer only once, and one that is dead fails at once. Default: none.
min_healthy
    Seconds that it must stay well. Default: 2.
healthy_deadline
    Seconds until giving up. Default: 60.
"""

import llm_engine
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_health"


def __virtual__():
    return __virtualname__


def healthy(name):
    """
    Ensure that each container of service ``name`` on this host is healthy.

    .. code-block:: yaml

        head:
          llm_health.healthy

    name
        A service of the catalogue, which says how to ask it and how long to wait.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is healthy"}
    try:
        if __opts__["test"]:
            if __salt__["llm_health.well"](name):
                return ret
            seconds = __salt__["llm_config.service"](name)["progress_deadline"]
            return _would_wait(ret, name, seconds)
        __salt__["llm_health.wait_for"](name)
    except (CommandExecutionError, SaltInvocationError) as err:
        ret |= llm_engine.failure(err, __opts__["test"])
    return ret


def http(
    name,
    url,
    socket=None,
    status=200,
    json=None,
    container=None,
    min_healthy=2,
    healthy_deadline=60,
):
    """
    Ensure that ``url`` answers with ``status``, and with ``json`` in its body.

    .. code-block:: yaml

        The search engine answers:
          llm_health.http:
            - url: http://127.0.0.1:9200/_cluster/health
            - json: {timed_out: false}

    url
        What to ask for.
    socket
        Path of a Unix socket to connect to. Default: none, the URL's host.
    status
        The status that is well. Default: 200.
    json
        What the body must hold at least. Default: anything.
    """
    check = {"http": url, "status": status}
    check |= {"socket": socket} if socket else {}
    check |= {"json": json} if json is not None else {}
    return _gate(name, check, container, min_healthy, healthy_deadline)


def tcp(name, address, container=None, min_healthy=2, healthy_deadline=60):
    """
    Ensure that something accepts connections at ``address``.

    .. code-block:: yaml

        The mail server accepts connections:
          llm_health.tcp:
            - address: 127.0.0.1:25

    address
        Host and port.
    """
    return _gate(name, {"tcp": address}, container, min_healthy, healthy_deadline)


def redis(
    name,
    address,
    secret=None,
    password_file=None,
    container=None,
    min_healthy=2,
    healthy_deadline=60,
):
    """
    Ensure that a server of the Redis protocol answers ``PING`` at ``address``.

    .. code-block:: yaml

        The queue answers:
          llm_health.redis:
            - address: 127.0.0.1:6379
            - password_file: /etc/queue/password

    address
        Host and port.
    secret
        Name of the platform's secret that holds the password. Default: none.
    password_file
        Path of a file that holds the password. Default: none.
    """
    check = {"redis": address}
    check |= {"secret": secret} if secret else {}
    check |= {"password_file": password_file} if password_file else {}
    return _gate(name, check, container, min_healthy, healthy_deadline)


def grpc(name, address, service="", container=None, min_healthy=2, healthy_deadline=60):
    """
    Ensure that the gRPC health service at ``address`` says SERVING.

    .. code-block:: yaml

        The ledger serves:
          llm_health.grpc:
            - address: 127.0.0.1:50051

    address
        Host and port.
    service
        Name of a service there. Default: the whole server.
    """
    check = {"grpc": address, "service": service}
    return _gate(name, check, container, min_healthy, healthy_deadline)


def container(name, min_healthy=2, healthy_deadline=60):
    """
    Ensure that container ``name`` runs and that its own health check, if it has one, is content.

    .. code-block:: yaml

        registry:
          llm_health.container:
            - min_healthy: 10

    name
        Name of the container.
    """
    return _gate(name, {"container": "running"}, name, min_healthy, healthy_deadline)


def _gate(name, check, container_, min_healthy, healthy_deadline):
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is healthy"}
    try:
        if __opts__["test"]:
            answer = __salt__["llm_health.probe"](check, container=container_)
            return ret if answer["ok"] else _would_wait(ret, name, healthy_deadline)
        __salt__["llm_health.wait"](
            check,
            container=container_,
            min_healthy=min_healthy,
            healthy_deadline=healthy_deadline,
        )
    except (CommandExecutionError, SaltInvocationError) as err:
        ret |= llm_engine.failure(err, __opts__["test"])
    return ret


def _would_wait(ret, name, seconds):
    ret["result"] = None
    ret["comment"] = f"{name} is not healthy; would wait up to {seconds:g} s"
    return ret
