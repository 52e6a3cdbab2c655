# A laptop: small limits, more CPU than is there, quick deadlines, talkative.
llm:
  services:
    cache: {memory: 128m, cpus: 0.5}
    model-proxy: {memory: 1g, cpus: 1}
    head: {memory: 1g, cpus: 1.5}
    rate-limiter: {memory: 128m, cpus: 0.5}
    tail: {memory: 256m, cpus: 0.5}
    mesh: {memory: 128m, cpus: 0.5}
    ingress: {memory: 128m, cpus: 0.5}
  log_level: info
  requests: {connection: 10s}
  certificates: {days: 30, renew_days: 10}
  preflight: {cpu_overcommit: 4.0}
