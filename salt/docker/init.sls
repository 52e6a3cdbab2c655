include:
  - docker.network
