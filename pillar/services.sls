# The catalogue: what each service is. Every knob stands here once, with its default.
# environments/<name>.sls overrides what differs there; site.yaml says where things run.
#
# Sizes are written like 512m or 2g (powers of 1024), durations like 5s, 2m or plain seconds.
llm:
  defaults:
    version: ""               # of the software; quoted, or YAML reads 1.10 as a number
    replicas: 1               # containers per host that carries the role
    every_host: false         # true: runs on each host, whatever its roles
    needs: []                 # services that must be healthy first, and that it may call
    network: platform         # platform: the network of site.yaml; host: the host's own
    protocol: http            # what the mesh speaks to it: http, grpc or tcp
    command: []               # in place of the image's own; {log_level} stands for log_level
    environment: {}           # never secrets: they show in `docker inspect`
    secrets: []               # <group>.<name>, rendered into files; see `salt-run llm.secret`
    files: []                 # templates of salt/<service>/files; a change replaces the container
    live_files: []            # of salt/<service>/files/live; the service reads changes by itself
    endpoints: false          # true: reads the addresses of all replicas (the Envoys that route)
    models: false             # true: reads the models of site.yaml; a change replaces the container
    certificate: ""           # internal: from our authority; public: site.yaml's own, else internal
    volumes: {}               # name: path inside the container
    tmpfs: {/tmp: 64m}        # path: size
    devices: []               # host devices, such as /dev/dri
    gpus: 0                   # number of GPUs, or all
    capabilities: []          # Linux capabilities beyond none
    memory: 256m
    cpus: 0.25
    pids: 256
    read_only: true           # the root file system
    strategy: start-first     # start-first: new beside old; stop-first: for what holds a volume
    when_tight: refuse        # memory too small for both at once: refuse, or stop-first
    stop_timeout: 10s         # from SIGTERM to SIGKILL
    drain_timeout: 60s        # what the old one has begun may take so long, if it does
    min_healthy: 2s           # healthy without a flip for so long counts as healthy
    healthy_deadline: 60s     # one container must be healthy within
    smoke_test: ""            # a secret, the key with which a new container must give a completion
                              # before it takes the place of another
    progress_deadline: 180s   # the whole service must be healthy within
    keep: 2                   # replaced containers that are kept, stopped, for going back
    log: {max_size: 10m, max_files: 3}

  services:
    mesh:
      image: envoy
      version: "1.40.0"
      every_host: true
      slot: 1                 # addresses slot*16 to slot*16+15 of the network are this service's
      port: 9900
      user: 10001
      protocol: tcp
      health: {http: /ready, socket: admin.sock}
      certificate: internal
      endpoints: true
      files: [bootstrap.yaml]
      live_files: [clusters.yaml, authority.yaml, certificate.yaml, listeners.yaml]
      command: [envoy, -c, /etc/llm/bootstrap.yaml, --disable-hot-restart, --concurrency, "2",
                --file-flush-interval-msec, "1000", --log-level, "{log_level}"]

    ingress:
      image: envoy
      version: "1.40.0"
      every_host: true
      slot: 2
      port: 9901
      user: 10002
      network: host
      protocol: tcp
      health: {http: /ready, socket: admin.sock}
      certificate: internal
      endpoints: true
      files: [bootstrap.yaml]
      live_files: [clusters.yaml, authority.yaml, certificate.yaml, listeners.yaml]
      command: [envoy, -c, /etc/llm/bootstrap.yaml, --disable-hot-restart, --concurrency, "2",
                --file-flush-interval-msec, "1000", --log-level, "{log_level}"]

    cache:
      image: cache
      version: "8.1"
      slot: 3
      port: 6379
      user: 10003
      protocol: tcp
      health: {redis: cache.password}
      secrets: [cache.password]
      files: [valkey.conf]
      volumes: {cache-data: /data}
      strategy: stop-first
      memory: 512m
      cpus: 0.5
      command: [valkey-server, /etc/llm/valkey.conf]

    model-proxy:
      image: model-proxy
      version: "2026.10.11549"
      slot: 4
      port: 8080
      user: 10004
      health: {http: /health, json: {status: ok}}
      smoke_test: model-proxy.key
      secrets: [model-proxy.key]
      models: true
      files: [server.yaml]
      memory: 2g
      cpus: 1
      healthy_deadline: 120s
      progress_deadline: 300s
      command: [model-proxy, /etc/llm/server.yaml]

    head:
      image: head
      version: "1.106.2"
      slot: 5
      port: 4000
      user: 10005
      needs: [model-proxy, cache]
      health: {http: /health/readiness}
      smoke_test: head.key
      secrets: [head.key, cache.password, model-proxy.key, providers]
      files: [config.yaml]
      memory: 1g
      cpus: 0.5
      healthy_deadline: 180s
      progress_deadline: 400s
      command: [llm-head, /etc/llm/config.yaml, "4000"]

    rate-limiter:
      image: rate-limiter
      version: "1.4.1"
      slot: 6
      port: 8081
      user: 10006
      needs: [cache]
      protocol: grpc
      health: {grpc: ""}
      secrets: [cache.password]
      files: [settings.env]
      live_files: [limits.yaml]
      command: [ratelimit, /etc/llm/settings.env]

    tail:
      image: envoy
      version: "1.40.0"
      slot: 7
      port: 8443
      user: 10007
      needs: [head, rate-limiter]
      protocol: tcp
      health: {http: /ready, socket: admin.sock}
      secrets: [head.key, clients]
      certificate: public
      files: [bootstrap.yaml]
      live_files: [clusters.yaml, head-key.yaml, certificate.yaml, listeners.yaml]
      memory: 1g
      cpus: 0.5
      command: [envoy, -c, /etc/llm/bootstrap.yaml, --disable-hot-restart, --concurrency, "2",
                --file-flush-interval-msec, "1000", --log-level, "{log_level}"]

  requests:                   # what clients may ask, and how long it may take
    max_bytes: 4m
    timeout: 300s             # a whole answer, streamed or not
    per_try_timeout: 120s
    retries: 2                # tries after the first, of what may be tried again
    backoff: 100ms            # up to so long before the first of them, by chance; then doubled
    max_backoff: 2s
    connection: 30s           # then a client connects anew: so soon a replaced ingress is left
  mesh:                       # what each Envoy does about a service that is slow, overloaded or dead
    connect_timeout: 2s
    max_connections: 1024     # to one service at once
    max_pending: 1024         # requests that wait for a connection; more are refused
    max_requests: 1024        # under way at once; more are refused
    retry_budget: 50          # percent of the requests under way that may be further tries
    min_retries: 100          # further tries at once in any case: what waited for a dead replica
    check_interval: 2s        # between two health checks
    failures: 5               # on end, and a replica is left out
    ejection: 5s              # for so long the first time, then for longer
    max_ejected: 50           # percent of the replicas; the last one stays in any case
  limits: {unit: minute, requests: 60}   # of a client that site.yaml does not give its own
  response_cache: {enabled: true, ttl: 600s}
  log_level: info             # debug, info, warning or error, for every service
  certificates: {days: 90, renew_days: 30, authority_days: 3650}
  preflight: {cpu_overcommit: 1.0, memory_reserve: 256m, disk_free: 6g, clock_skew: 30s}
