A client gets a completion:
  llm_completion.answered
