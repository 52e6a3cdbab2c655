A container engine is installed:
  llm_docker.installed
