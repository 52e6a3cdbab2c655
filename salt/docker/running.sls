include:
  - docker.installed

The container engine answers:
  llm_docker.running:
    - require:
      - llm_docker: A container engine is installed
