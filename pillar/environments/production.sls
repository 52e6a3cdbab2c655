# The old playbook's limits, two heads, patient deadlines, quiet logs.
llm:
  services:
    model-proxy: {min_healthy: 10s, healthy_deadline: 300s, progress_deadline: 600s}
    head: {replicas: 2, min_healthy: 10s}
    rate-limiter: {min_healthy: 10s}
    tail: {min_healthy: 10s}
    cache: {min_healthy: 10s}
  limits: {unit: minute, requests: 600}
  log_level: warning
  certificates: {days: 90, renew_days: 30}
