# Production's shape at half its size: what passes here passes there.
llm:
  services:
    cache: {memory: 256m}
    model-proxy: {memory: 2g, min_healthy: 5s}
    head: {memory: 1g, cpus: 1, min_healthy: 5s}
    tail: {memory: 512m, min_healthy: 5s}
  limits: {unit: minute, requests: 300}
  log_level: info
  certificates: {days: 60, renew_days: 20}
  preflight: {cpu_overcommit: 2.0}
