The configuration is valid:
  llm_config.checked:
    - order: first
    - failhard: True
